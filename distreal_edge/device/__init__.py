"""One board: what it can spare, which rows it trains, and how its updates get to the aggregator."""

from __future__ import annotations

from distreal_edge.device.board import Availability, Board, Ran, RealBoard, TraceBoard
from distreal_edge.device.daemon import DeviceDaemon
from distreal_edge.device.encoding import Compression, Encoding
from distreal_edge.device.guest import become_guest
from distreal_edge.device.measuring import measure_speed
from distreal_edge.device.monitor import Monitor
from distreal_edge.device.owner import OwnerLimits, QuietHours
from distreal_edge.device.pace import Choice, Pace, Speed
from distreal_edge.device.pieces import Piece, elements_of, offsets_of, pieces_of
from distreal_edge.device.residuals import Residuals
from distreal_edge.device.rounds import DeviceRounds
from distreal_edge.device.spool import Spool
from distreal_edge.device.survivors import Survivors
from distreal_edge.device.trace import Trace
from distreal_edge.device.trainer import MiniBatch, train_round
from distreal_edge.device.update import Update, UpdateHeader, encode_update, most_bytes
from distreal_edge.device.update_file import UpdateReader, decode_update, read_update

__all__ = [
    "Availability",
    "Board",
    "Choice",
    "Compression",
    "DeviceDaemon",
    "DeviceRounds",
    "Encoding",
    "MiniBatch",
    "Monitor",
    "OwnerLimits",
    "Pace",
    "Piece",
    "QuietHours",
    "Ran",
    "RealBoard",
    "Residuals",
    "Speed",
    "Spool",
    "Survivors",
    "Trace",
    "TraceBoard",
    "Update",
    "UpdateHeader",
    "UpdateReader",
    "become_guest",
    "decode_update",
    "elements_of",
    "encode_update",
    "measure_speed",
    "most_bytes",
    "offsets_of",
    "pieces_of",
    "read_update",
    "train_round",
]
