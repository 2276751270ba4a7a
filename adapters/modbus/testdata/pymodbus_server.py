"""A Modbus server on pymodbus: unit 1, over TCP (tcp PORT) or as a slave on a
serial line (rtu PATH).

Addresses 0 to 199 of each table hold their own number, or its lowest bit. A read
of holding register 900 + n is answered with exception n.
"""
import asyncio
import logging
import sys

from pymodbus.datastore import ModbusServerContext, ModbusSlaveContext, ModbusSparseDataBlock
from pymodbus.device import ModbusDeviceIdentification
from pymodbus.register_read_message import ReadHoldingRegistersRequest
from pymodbus.server.async_io import StartAsyncSerialServer, StartAsyncTcpServer
from pymodbus.transaction import ModbusRtuFramer


class Refusing(ReadHoldingRegistersRequest):
    def execute(self, context):
        if self.address >= 900:
            return self.doException(self.address - 900)
        return super().execute(context)


def numbers():
    return ModbusSparseDataBlock({i: i for i in range(0, 200)})


def bits():
    return ModbusSparseDataBlock({i: i % 2 == 1 for i in range(0, 200)})


async def main(kind, where):
    unit = ModbusSlaveContext(di=bits(), co=bits(), hr=numbers(), ir=numbers(), zero_mode=True)
    context = ModbusServerContext(slaves={1: unit}, single=False)
    identity = ModbusDeviceIdentification(
        info_name={"VendorName": "Acme", "ProductCode": "P-1", "MajorMinorRevision": "1.2", "ModelName": "M-1"}
    )
    if kind == "tcp":
        await StartAsyncTcpServer(context, identity=identity, address=("127.0.0.1", int(where)), custom_functions=[Refusing])
    else:
        await StartAsyncSerialServer(
            context, framer=ModbusRtuFramer, identity=identity, port=where, baudrate=19200, parity="N", stopbits=1,
            bytesize=8, timeout=0.01, custom_functions=[Refusing],
        )


logging.disable(logging.CRITICAL)
asyncio.run(main(sys.argv[1], sys.argv[2]))
