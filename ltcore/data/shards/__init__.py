"""Shards on disks and in object stores: format, reading, writing, checking."""
