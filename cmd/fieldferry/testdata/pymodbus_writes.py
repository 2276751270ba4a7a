"""A Modbus TCP server on pymodbus with one unit, which notes what is written to it.

Each write of holding registers or coils is a line of LOG, "table address values…",
made durable before the answer goes. It takes BEFORE ms until it is written, and
AFTER ms more until it is answered.
"""
import asyncio
import logging
import os
import sys
import time

from pymodbus.datastore import ModbusServerContext, ModbusSlaveContext, ModbusSparseDataBlock
from pymodbus.server.async_io import StartAsyncTcpServer

port, log, before, after = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
out = open(log, "a")


class Noting(ModbusSparseDataBlock):
    def __init__(self, table):
        self.table = None
        super().__init__({i: 0 for i in range(0, 500)})
        self.table = table

    def setValues(self, address, values, use_as_default=False):
        if self.table is None:
            return super().setValues(address, values, use_as_default)
        time.sleep(before / 1000)
        super().setValues(address, values, use_as_default)
        values = values if isinstance(values, (list, tuple)) else [values]
        out.write(" ".join([self.table, str(address)] + [str(int(v)) for v in values]) + "\n")
        out.flush()
        os.fsync(out.fileno())
        time.sleep(after / 1000)


async def main():
    unit = ModbusSlaveContext(hr=Noting("holding"), co=Noting("coil"), zero_mode=True)
    await StartAsyncTcpServer(ModbusServerContext(slaves=unit, single=True), address=("127.0.0.1", port))


logging.disable(logging.CRITICAL)
asyncio.run(main())
