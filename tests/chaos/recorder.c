// Preloaded into a program, it writes down in one order all that changes files below $RECORDER_ROOT, and what is sent to
// sockets. A record is a line "kind inode offset length path\n" with `length` bytes after it (for a rename the new path).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MOST_FILES = 4096 };
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static char *paths[MOST_FILES];
static const char *root;
static int record_fd = -1;

__attribute__((constructor)) static void begin(void) {
    root = getenv("RECORDER_ROOT");
    const char *log = getenv("RECORDER_LOG");
    if (root && log) record_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static int watched(const char *path) {
    size_t length = record_fd >= 0 ? strlen(root) : 0;
    return length && path && !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}
static const char *path_of(int fd) { return fd >= 0 && fd < MOST_FILES ? paths[fd] : NULL; }

static void put(const void *data, size_t length) {
    const char *at = data;
    while (length) {
        ssize_t written = syscall(SYS_write, record_fd, at, length);
        if (written <= 0) abort();
        at += written, length -= written;
    }
}

static void note(const char *kind, int fd, long long offset, const void *data, size_t length, const char *path) {
    struct stat found = {0};
    if (fd >= 0) fstat(fd, &found);
    char line[PATH_MAX + 128];
    int size = snprintf(line, sizeof line, "%s %llu %lld %zu %s\n", kind, (unsigned long long)found.st_ino, offset, length, path);
    put(line, size);
    if (length) put(data, length);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int opened(int fd, const char *path, int flags, int existed) {
    if (fd < 0 || fd >= MOST_FILES) return fd;
    free(paths[fd]);
    paths[fd] = strdup(path);
    if (!existed) note("create", fd, 0, NULL, 0, path);
    else if (flags & O_TRUNC) note("truncate", fd, 0, NULL, 0, path);
    return fd;
}

static int open_watched(int directory, const char *path, int flags, mode_t mode) {
    if (!watched(path)) return syscall(SYS_openat, directory, path, flags, mode);
    pthread_mutex_lock(&order);
    int existed = !(flags & O_CREAT) || !syscall(SYS_faccessat, directory, path, F_OK);
    int fd = opened(syscall(SYS_openat, directory, path, flags, mode), path, flags, existed);
    int error = errno;
    pthread_mutex_unlock(&order);
    errno = error;
    return fd;
}

#define OPEN(name)                                                  \
    int name(const char *path, int flags, ...) {                    \
        va_list rest;                                               \
        va_start(rest, flags);                                      \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                               \
        return open_watched(AT_FDCWD, path, flags, mode);           \
    }
#define OPENAT(name)                                                \
    int name(int directory, const char *path, int flags, ...) {     \
        va_list rest;                                               \
        va_start(rest, flags);                                      \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                               \
        return open_watched(directory, path, flags, mode);          \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
    pthread_mutex_lock(&order);
    if (fd >= 0 && fd < MOST_FILES) free(paths[fd]), paths[fd] = NULL;
    int result = syscall(SYS_close, fd), error = errno;
    pthread_mutex_unlock(&order);
    errno = error;
    return result;
}

ssize_t write(int fd, const void *data, size_t length) {
    if (!path_of(fd)) return syscall(SYS_write, fd, data, length);
    pthread_mutex_lock(&order);
    long long offset = lseek(fd, 0, SEEK_CUR);
    struct stat found;
    if (fcntl(fd, F_GETFL) & O_APPEND) offset = fstat(fd, &found) ? 0 : found.st_size;
    ssize_t written = syscall(SYS_write, fd, data, length);
    int error = errno;
    if (written > 0 && path_of(fd)) note("write", fd, offset, data, written, paths[fd]);
    pthread_mutex_unlock(&order);
    errno = error;
    return written;
}

#define PWRITE(name, offset_type)                                                       \
    ssize_t name(int fd, const void *data, size_t length, offset_type offset) {         \
        if (!path_of(fd)) return syscall(SYS_pwrite64, fd, data, length, offset);       \
        pthread_mutex_lock(&order);                                                     \
        ssize_t written = syscall(SYS_pwrite64, fd, data, length, offset);              \
        int error = errno;                                                              \
        if (written > 0 && path_of(fd)) note("write", fd, offset, data, written, paths[fd]); \
        pthread_mutex_unlock(&order);                                                   \
        errno = error;                                                                  \
        return written;                                                                 \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define FTRUNCATE(name, size_type)                                                      \
    int name(int fd, size_type size) {                                                  \
        if (!path_of(fd)) return syscall(SYS_ftruncate, fd, size);                      \
        pthread_mutex_lock(&order);                                                     \
        int result = syscall(SYS_ftruncate, fd, size), error = errno;                   \
        if (!result) note("truncate", fd, size, NULL, 0, paths[fd]);                    \
        pthread_mutex_unlock(&order);                                                   \
        errno = error;                                                                  \
        return result;                                                                  \
    }
FTRUNCATE(ftruncate, off_t)
FTRUNCATE(ftruncate64, off64_t)

#define SYNC(name)                                                                      \
    int name(int fd) {                                                                  \
        if (!path_of(fd)) return syscall(SYS_##name, fd);                               \
        pthread_mutex_lock(&order);                                                     \
        int result = syscall(SYS_##name, fd), error = errno;                            \
        struct stat found;                                                              \
        if (!result && !fstat(fd, &found)) note(S_ISDIR(found.st_mode) ? "syncdir" : "sync", fd, 0, NULL, 0, paths[fd]); \
        pthread_mutex_unlock(&order);                                                   \
        errno = error;                                                                  \
        return result;                                                                  \
    }
SYNC(fsync)
SYNC(fdatasync)

int rename(const char *old, const char *new) {
    if (!watched(old)) return syscall(SYS_rename, old, new);
    pthread_mutex_lock(&order);
    int result = syscall(SYS_rename, old, new), error = errno;
    if (!result) note("rename", -1, 0, new, strlen(new), old);
    pthread_mutex_unlock(&order);
    errno = error;
    return result;
}

#define REMOVE(name, kind)                                                              \
    int name(const char *path) {                                                        \
        if (!watched(path)) return syscall(SYS_##name, path);                           \
        pthread_mutex_lock(&order);                                                     \
        int result = syscall(SYS_##name, path), error = errno;                          \
        if (!result) note(kind, -1, 0, NULL, 0, path);                                  \
        pthread_mutex_unlock(&order);                                                   \
        errno = error;                                                                  \
        return result;                                                                  \
    }
REMOVE(unlink, "unlink")
REMOVE(rmdir, "unlink")

int mkdir(const char *path, mode_t mode) {
    if (!watched(path)) return syscall(SYS_mkdir, path, mode);
    pthread_mutex_lock(&order);
    int result = syscall(SYS_mkdir, path, mode), error = errno;
    if (!result) note("mkdir", -1, 0, NULL, 0, path);
    pthread_mutex_unlock(&order);
    errno = error;
    return result;
}

ssize_t send(int fd, const void *data, size_t length, int flags) {
    if (record_fd < 0) return syscall(SYS_sendto, fd, data, length, flags, NULL, 0);
    pthread_mutex_lock(&order);
    // Before it is sent: whatever the others have heard was written down here.
    note("send", -1, 0, data, length, "-");
    ssize_t sent = syscall(SYS_sendto, fd, data, length, flags | MSG_DONTWAIT, NULL, 0);
    int error = errno;
    pthread_mutex_unlock(&order);
    if (sent < 0 && error == EAGAIN && !(flags & MSG_DONTWAIT)) return syscall(SYS_sendto, fd, data, length, flags, NULL, 0);
    errno = error;
    return sent;
}
