"""Stamps: integer nanoseconds in this package, builtin_interfaces/Time in messages."""

from __future__ import annotations

from builtin_interfaces.msg import Time

NS = 1_000_000_000


def ns_from_stamp(stamp: Time) -> int:
    """A message stamp as integer nanoseconds."""
    return stamp.sec * NS + stamp.nanosec


def stamp_from_ns(stamp_ns: int) -> Time:
    """Integer nanoseconds, within ROS's 32 bits of seconds, as a message stamp."""
    seconds, nanoseconds = divmod(stamp_ns, NS)
    return Time(sec=seconds, nanosec=nanoseconds)
