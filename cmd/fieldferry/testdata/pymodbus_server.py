"""A Modbus TCP server on pymodbus with three units.

Holding registers 0 and 1 of each unit are a counter of 32 bits that rises with
each read; the others are their own address.
"""
import asyncio
import logging
import sys

from pymodbus.datastore import ModbusServerContext, ModbusSlaveContext, ModbusSparseDataBlock
from pymodbus.server.async_io import StartAsyncTcpServer


class Counting(ModbusSparseDataBlock):
    def __init__(self):
        super().__init__({i: i for i in range(0, 100)})
        self.reads = 0

    def getValues(self, address, count=1):
        if address == 0:
            self.reads += 1
            self.values[0] = self.reads >> 16
            self.values[1] = self.reads & 0xFFFF
        return super().getValues(address, count)


async def main(port):
    units = {u: ModbusSlaveContext(hr=Counting(), zero_mode=True) for u in (1, 2, 3)}
    context = ModbusServerContext(slaves=units, single=False)
    await StartAsyncTcpServer(context, address=("127.0.0.1", port))


logging.disable(logging.CRITICAL)  # it calls every client that goes an error
asyncio.run(main(int(sys.argv[1])))
