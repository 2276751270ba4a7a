package modbus

import "slices"

var (
	tableNames = []string{"holding", "input", "coil", "discrete"}
	typeNames  = []string{"", "bool", "int16", "uint16", "int32", "uint32", "int64", "uint64",
		"float16", "float32", "float64", "string", "bcd16", "bcd32"}
	orderNames = []string{"ABCD", "CDAB", "BADC", "DCBA"}
)

func (t Table) String() string { return name(tableNames, int(t)) }
func (t Type) String() string  { return name(typeNames, int(t)) }
func (o Order) String() string { return name(orderNames, int(o)) }

// ParseTable is the inverse of Table.String: "holding", "input", "coil" or
// "discrete".
func ParseTable(s string) (Table, bool) { return parse[Table](tableNames, s) }

// ParseType is the inverse of Type.String: "float32" and so on; "" is Auto.
func ParseType(s string) (Type, bool) { return parse[Type](typeNames, s) }

// ParseOrder is the inverse of Order.String: "ABCD", "CDAB", "BADC" or "DCBA".
func ParseOrder(s string) (Order, bool) { return parse[Order](orderNames, s) }

func name(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return "unknown"
}

func parse[T ~uint8](names []string, s string) (T, bool) {
	i := slices.Index(names, s)
	return T(max(i, 0)), i >= 0
}
