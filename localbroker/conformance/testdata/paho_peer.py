"""An MQTT client by Eclipse paho that does what it is told, a JSON object a line."""
import json
import queue
import socket
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PATIENCE = 10
port, five = int(sys.argv[1]), sys.argv[2] == "5"


class Peer:
    def connect(self, o):
        self.messages, self.answers = queue.Queue(), queue.Queue()
        kept = {} if five else {"clean_session": not o["keep"]}
        self.c = c = mqtt.Client(o["id"], protocol=mqtt.MQTTv5 if five else mqtt.MQTTv311, **kept)
        c.on_connect = lambda c, d, flags, *rest: self.answers.put(flags["session present"])
        c.on_message = lambda c, d, m: self.messages.put(m)
        c.on_subscribe = lambda c, d, mid, reasons, *rest: self.answers.put([int(getattr(r, "value", r)) for r in reasons])
        if "will" in o:
            w = o["will"]
            c.will_set(w["topic"], w["payload"], w["qos"], w["retain"])
        more = {}
        if five:
            more = {"clean_start": not o["keep"], "properties": Properties(PacketTypes.CONNECT)}
            if o["keep"]:
                more["properties"].SessionExpiryInterval = 3600
        c.connect("127.0.0.1", port, **more)
        c.loop_start()
        return {"present": bool(self.answers.get(timeout=PATIENCE))}

    def subscribe(self, o):
        self.c.subscribe(o["topic"], qos=o["qos"])
        return {"reason": self.answers.get(timeout=PATIENCE)[0]}

    def publish(self, o):
        more = {}
        if five and o.get("content_type"):
            more["properties"] = p = Properties(PacketTypes.PUBLISH)
            p.ContentType = o["content_type"]
            p.UserProperty = [("a", "1"), ("a", "2")]
        sent = self.c.publish(o["topic"], o["payload"], o["qos"], o["retain"], **more)
        sent.wait_for_publish(PATIENCE)
        return {} if sent.is_published() else {"error": "not acknowledged"}

    def next(self, o):
        m = self.messages.get(timeout=PATIENCE)
        props = getattr(m, "properties", None)
        return {"topic": m.topic, "payload": m.payload.decode(), "qos": m.qos, "retain": bool(m.retain),
                "content_type": getattr(props, "ContentType", ""),
                "user": ["=".join(p) for p in getattr(props, "UserProperty", [])]}

    def disconnect(self, o):
        self.c.disconnect()
        self.c.loop_stop()
        return {}

    def drop(self, o):
        self.c.loop_stop()
        self.c.socket().shutdown(socket.SHUT_RDWR)
        return {}


peer = Peer()
for line in sys.stdin:
    order = json.loads(line)
    try:
        answer = getattr(peer, order["do"])(order)
    except Exception as e:  # whatever it is, the test is to say it
        answer = {"error": repr(e)}
    print(json.dumps(answer), flush=True)
