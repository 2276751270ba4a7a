/* A Modbus server on libmodbus: unit 1, over TCP (tcp PORT) or as a slave on a
 * serial line (rtu PATH). What it holds is as in pymodbus_server.py. */
#include <modbus.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
  uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
  int tcp, socket = -1, n, i;
  modbus_t *ctx;
  modbus_mapping_t *map = modbus_mapping_new(200, 200, 200, 200);
  if (argc != 3 || map == NULL) return 2;
  tcp = strcmp(argv[1], "tcp") == 0;
  ctx = tcp ? modbus_new_tcp("127.0.0.1", atoi(argv[2])) : modbus_new_rtu(argv[2], 19200, 'N', 8, 1);
  if (ctx == NULL) return 2;
  modbus_set_slave(ctx, 1);
  for (i = 0; i < 200; i++) {
    map->tab_bits[i] = map->tab_input_bits[i] = i % 2;
    map->tab_registers[i] = map->tab_input_registers[i] = i;
  }
  if (tcp) {
    socket = modbus_tcp_listen(ctx, 4);
    if (socket < 0) return 1;
  } else if (modbus_connect(ctx) < 0) {
    return 1;
  }
  for (;;) {
    if (tcp && modbus_tcp_accept(ctx, &socket) < 0) return 1;
    while ((n = modbus_receive(ctx, query)) >= 0) {
      int at = modbus_get_header_length(ctx);
      int address = query[at + 1] << 8 | query[at + 2];
      if (n == 0) continue; /* for another slave */
      if (query[at] == MODBUS_FC_READ_HOLDING_REGISTERS && address >= 900)
        modbus_reply_exception(ctx, query, address - 900);
      else
        modbus_reply(ctx, query, n, map);
    }
    if (tcp) modbus_close(ctx);
  }
}
