// An MQTT client by mqtt.js that does what it is told, a JSON object a line.
'use strict'
const readline = require('readline')
const mqtt = require('mqtt')

const patience = 10000
const port = Number(process.argv[2])
const five = process.argv[3] === '5'
// Where it is not plain MQTT: protocol, path, and the files of ca, cert and key.
const way = process.env.MQTTJS_WAY ? JSON.parse(process.env.MQTTJS_WAY) : {}
for (const file of ['ca', 'cert', 'key']) if (way[file]) way[file] = require('fs').readFileSync(way[file])
let client, messages, waiting

const within = (promise) => Promise.race([promise, new Promise((_, no) => setTimeout(() => no(new Error('nothing came in time')), patience).unref())])

const peer = {
  connect (o) {
    messages = []
    waiting = null
    const options = { ...way, host: 'localhost', port, clientId: o.id, clean: !o.keep, protocolVersion: five ? 5 : 4, reconnectPeriod: 0, queueQoSZero: false, resubscribe: false }
    if (five && o.keep) options.properties = { sessionExpiryInterval: 3600 }
    if (o.will) options.will = o.will
    client = mqtt.connect(options)
    client.on('message', (topic, payload, packet) => {
      const p = packet.properties || {}
      const user = Object.entries(p.userProperties || {}).flatMap(([k, v]) => [].concat(v).map((one) => k + '=' + one))
      messages.push({ topic, payload: payload.toString(), qos: packet.qos, retain: packet.retain, content_type: p.contentType || '', user })
      if (waiting) waiting()
    })
    return within(new Promise((yes, no) => {
      client.on('connect', (ack) => yes({ present: ack.sessionPresent }))
      client.on('error', no)
    }))
  },
  async subscribe (o) {
    const [granted] = await within(client.subscribeAsync(o.topic, { qos: o.qos }))
    return { reason: granted.qos }
  },
  async publish (o) {
    const options = { qos: o.qos, retain: o.retain }
    if (five && o.content_type) options.properties = { contentType: o.content_type, userProperties: { a: ['1', '2'] } }
    await within(client.publishAsync(o.topic, o.payload, options))
    return {}
  },
  async next () {
    if (messages.length === 0) await within(new Promise((yes) => { waiting = yes }))
    waiting = null
    return messages.shift()
  },
  async disconnect () {
    await within(client.endAsync())
    return {}
  },
  drop () {
    client.stream.destroy()
    return {}
  }
}

;(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const order = JSON.parse(line)
    let answer
    try {
      answer = await peer[order.do](order)
    } catch (e) {
      answer = { error: String(e) }
    }
    console.log(JSON.stringify(answer))
  }
  process.exit()
})()
