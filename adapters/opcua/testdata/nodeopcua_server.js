// An OPC UA server on node-opcua for the interop tests and the benchmark. Its one
// argument is JSON: {port, pki, values, every, gone, host, tree}. It prints "ready" and
// its sessions on request: a line "sessions" on the standard input.
const path = require("path");
const { OPCUAServer, Variant, DataType, StatusCodes, DataValue, VariantArrayType, MessageSecurityMode, SecurityPolicy,
  OPCUACertificateManager, ServerState, makeAccessLevelFlag, Range, coerceLocalizedText } = require("node-opcua");

const o = Object.assign({ values: 0, every: 100, gone: false, tree: 0, anonymous: true }, JSON.parse(process.argv[2]));

(async () => {
  const certificates = name => new OPCUACertificateManager({ rootFolder: path.join(o.pki, name), automaticallyAcceptUnknownCertificate: true });
  const pki = certificates("server"), users = certificates("users");
  await pki.initialize();
  await users.initialize();
  const server = new OPCUAServer({
    port: o.port, hostname: o.host || "127.0.0.1", host: "127.0.0.1", alternateHostname: [o.host || "127.0.0.1"], resourcePath: "",
    serverCertificateManager: pki, userCertificateManager: users,
    certificateFile: o.cert, privateKeyFile: o.key,
    allowAnonymous: o.anonymous, maxConnectionsPerEndpoint: 100, maxAllowedSessionNumber: 100,
    securityModes: [MessageSecurityMode.None, MessageSecurityMode.Sign, MessageSecurityMode.SignAndEncrypt],
    securityPolicies: [SecurityPolicy.None, SecurityPolicy.Basic256Sha256, SecurityPolicy.Aes128_Sha256_RsaOaep, SecurityPolicy.Aes256_Sha256_RsaPss],
    userManager: { isValidUser: (user, password) => user === "gateway" && password === "secret" },
    serverInfo: o.uri ? { applicationUri: o.uri } : {},
    serverCapabilities: { operationLimits: { maxNodesPerRead: 1000, maxNodesPerBrowse: 200, maxMonitoredItemsPerCall: 1000 } },
  });
  await server.initialize();
  const space = server.engine.addressSpace;
  const ns = space.registerNamespace("urn:acme:press");
  const folder = ns.addObject({ organizedBy: space.rootFolder.objects, browseName: "Press", nodeId: "s=Press" });
  const add = (name, dataType, value, more) => ns.addVariable(Object.assign({
    componentOf: folder, browseName: name, nodeId: "s=Press." + name, dataType, value: value && Object.assign({ dataType: DataType[dataType] }, value),
    minimumSamplingInterval: 10,
  }, more));
  add("Boolean", "Boolean", { value: true });
  add("SByte", "SByte", { value: -7 });
  add("Byte", "Byte", { value: 200 });
  add("Int16", "Int16", { value: -1234 });
  add("UInt16", "UInt16", { value: 54321 });
  add("Int32", "Int32", { value: -123456789 });
  add("UInt32", "UInt32", { value: 3123456789 });
  add("Int64", "Int64", { arrayType: VariantArrayType.Scalar, value: [0x7fffffff, 0xffffffff] });
  add("UInt64", "UInt64", { arrayType: VariantArrayType.Scalar, value: [0xffffffff, 0xffffffff] });
  add("Float", "Float", { value: 1.5 });
  add("Double", "Double", { value: 3.25 });
  add("NaN", "Double", { value: NaN });
  add("String", "String", { value: "grüße" });
  add("DateTime", "DateTime", { value: new Date(Date.UTC(2026, 2, 1, 12)) });
  add("Guid", "Guid", { value: "72962B91-FA75-4AE6-8D28-B404DC7DAF63" });
  add("ByteString", "ByteString", { value: Buffer.from([1, 2, 3]) });
  add("LocalizedText", "LocalizedText", { value: coerceLocalizedText("offen") });
  add("Array", "Int32", { arrayType: VariantArrayType.Array, value: new Int32Array([1, 2, 3]) }, { valueRank: 1 });
  add("Matrix", "Double", { arrayType: VariantArrayType.Matrix, dimensions: [2, 2], value: new Float64Array([1, 2, 3, 4]) }, { valueRank: 2, arrayDimensions: [2, 2] });
  add("Range", "Range", null).setValueFromSource({ dataType: DataType.ExtensionObject, value: new Range({ low: 0, high: 100 }) });
  add("Uncertain", "Double", null).setValueFromSource({ dataType: DataType.Double, value: 5 }, StatusCodes.UncertainLastUsableValue);
  add("Bad", "Double", null).setValueFromSource({ dataType: DataType.Null }, StatusCodes.BadSensorFailure);
  add("ReadOnly", "Double", { value: 1 }, { accessLevel: makeAccessLevelFlag("CurrentRead"), userAccessLevel: makeAccessLevelFlag("CurrentRead") });
  add("Setpoint", "Double", { value: 20 });
  add("Counter", "UInt32", null, { minimumSamplingInterval: 10 });
  if (!o.gone) add("Vanishing", "Double", { value: 1 });
  let n = 0;
  const counter = space.findNode(`ns=${ns.index};s=Press.Counter`);
  const setCounter = () => counter.setValueFromSource({ dataType: DataType.UInt32, value: ++n });
  setCounter();
  setInterval(setCounter, 50);

  const method = ns.addMethod(folder, {
    browseName: "Add", nodeId: "s=Press.Add",
    inputArguments: [{ name: "a", dataType: DataType.Double }, { name: "b", dataType: DataType.Double }],
    outputArguments: [{ name: "sum", dataType: DataType.Double }],
  });
  method.bindMethod((input, _context, callback) => callback(null, {
    statusCode: StatusCodes.Good, outputArguments: [{ dataType: DataType.Double, value: input[0].value + input[1].value }],
  }));
  const reset = ns.addMethod(folder, { browseName: "Reset", nodeId: "s=Press.Reset", inputArguments: [], outputArguments: [] });
  reset.bindMethod((_input, _context, callback) => callback(null, { statusCode: StatusCodes.Good, outputArguments: [] }));

  if (o.tree) { // so many nodes, to browse
    let parent = null;
    for (let i = 0; i < o.tree; i++) {
      if (i % 100 === 0) parent = ns.addObject({ organizedBy: folder, browseName: "Area" + i / 100, nodeId: "s=Area" + i / 100 });
      else ns.addVariable({ componentOf: parent, browseName: "T" + i, nodeId: "s=T" + i, dataType: "Double", value: { dataType: DataType.Double, value: i } });
    }
  }
  const values = [];
  if (o.values) {
    const many = ns.addObject({ organizedBy: space.rootFolder.objects, browseName: "Many", nodeId: "s=Many" });
    for (let i = 1; i <= o.values; i++) {
      values.push(ns.addVariable({ componentOf: many, browseName: "V" + i, nodeId: "s=V" + i, dataType: "Double", minimumSamplingInterval: o.every / 2, value: { dataType: DataType.Double, value: 0 } }));
    }
    let k = 0;
    setInterval(() => { k++; for (let i = 0; i < values.length; i++) values[i].setValueFromSource({ dataType: DataType.Double, value: k + i / 1000 }); }, o.every);
  }
  await server.start();
  console.log("ready");
  process.stdin.on("data", line => {
    const words = line.toString().trim().split(" ");
    if (words[0] === "sessions") {
      const all = Object.values(server.engine._sessions || {});
      console.log("sessions " + server.engine.currentSessionCount + " " + server.engine.currentSubscriptionCount);
    } else if (words[0] === "vanish") {
      const node = space.findNode(`ns=${ns.index};s=Press.Vanishing`);
      if (node) space.deleteNode(node);
      console.log("vanished");
    } else if (words[0] === "appear") {
      add("Vanishing", "Double", { value: 2 });
      console.log("appeared");
    }
  });
  process.stdin.on("end", () => process.exit(0));
})().catch(err => { console.error(err); process.exit(1); });
