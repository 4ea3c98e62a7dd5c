# Compile for 64-bit ARM boards with the cross compiler that Debian and Ubuntu package as g++-aarch64-linux-gnu.
# No -mcpu: one module runs on every board from the Raspberry Pi 3 on, and chooses its kernels when it is loaded.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

# Programs are this machine's, libraries the board's. pybind11 is neither: headers and CMake files beside Python.
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE BOTH)
