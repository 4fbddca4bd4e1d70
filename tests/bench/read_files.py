"""Reads files one after the other by read(2) of 1 MiB, as a loader without mmap does; prints the seconds it took."""
import sys
import time

buffer = bytearray(1 << 20)
start = time.monotonic()
for name in sys.argv[1:]:
    with open(name, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
print(time.monotonic() - start)
