"""A Roost client in Python: sends messages, receives the own queue, survives reconnects.

Generate the stubs from the project's directory (pip install grpcio grpcio-tools):

    mkdir -p target/python
    python -m grpc_tools.protoc -I proto/proto --python_out=target/python --grpc_python_out=target/python \
        proto/proto/roost/v1/messaging.proto

An account and a device come from `roost account add`, which writes the credentials file that this program reads:

    export PYTHONPATH=target/python
    python docs/examples/send_and_listen.py --credentials ~/.config/roost/+4915100000001/phone.json \
        --to +4915100000002 "Good morning" "How are you?"
    python docs/examples/send_and_listen.py --credentials ~/.config/roost/+4915100000002/phone.json --count 2

Instead of a file: --user, --device (its number) and --key (base64), or ROOST_USER, ROOST_DEVICE and ROOST_KEY. The
servers are --server or ROOST_SERVER, host:port, several separated by commas.

It prints one JSON object per line: {"accepted": ID, "seq": N}, {"refused": ID, "code": CODE}, {"seq": N, "id": ID,
"from": USER, "body": TEXT}, {"expired": [FIRST, LAST]}. Exit codes: 0 done, 1 refused for good, 4 time ran out.

What it leaves out, and a program that must lose nothing when it dies itself does not: it keeps unanswered messages
(id, sending time) and the cursor in memory only.
"""

import argparse
import base64
import json
import os
import queue
import secrets
import sys
import time
import uuid
from collections import deque

import grpc

from roost.v1 import messaging_pb2 as v1
from roost.v1 import messaging_pb2_grpc


class Message:
    """One message until it is answered. Its id and its sending time never change, however often it is sent."""

    def __init__(self, message_id, body):
        self.id = message_id
        self.body = body.encode()
        self.sent_at_ms = None


class Outbox:
    """The unanswered messages of one conversation, in order, with their chain and positions."""

    def __init__(self, to, messages):
        self.to = to
        self.unanswered = deque(messages)
        self.refused = 0
        self.new_chain()
        self.rewind()

    def new_chain(self):
        """Always safe: the id is what makes a message one."""
        self.chain = secrets.randbits(63) + 1
        self.first_position = 1

    def rewind(self):
        """Everything unanswered goes out again, from the first on."""
        self.sent = 0
        self.in_flight = set()
        self.stalled = None

    def next(self, welcome, in_flight_max):
        if self.stalled or self.sent == len(self.unanswered) or len(self.in_flight) >= in_flight_max:
            return None
        message = self.unanswered[self.sent]
        position = self.first_position + self.sent
        self.sent += 1
        self.in_flight.add(message.id)
        if message.sent_at_ms is None:
            message.sent_at_ms = welcome.now_ms()
        return v1.Send(
            id=message.id,
            to=self.to,
            chain=self.chain,
            position=position,
            kind=v1.KIND_TEXT,
            body=message.body,
            sent_at_ms=message.sent_at_ms,
        )

    def answer(self, answer):
        """Takes an answer; after a retryable refusal the conversation stands still until nothing is on its way."""
        if answer.id not in self.in_flight:
            return
        self.in_flight.remove(answer.id)
        first = self.unanswered[0].id == answer.id
        if answer.HasField("error") and answer.error.retryable:
            lost_its_place = answer.error.code in (v1.UNKNOWN_CHAIN, v1.POSITION_GAP)
            self.stalled = self.stalled or (answer.error, first and lost_its_place)
        elif first:
            self.unanswered.popleft()
            self.sent -= 1
            self.first_position += 1
            if answer.HasField("error"):
                self.refused += 1
                show(refused=answer.id, code=v1.Code.Name(answer.error.code))
            else:
                show(accepted=answer.id, seq=answer.place.seq)
        # A final answer behind an unanswered message is asked for again, and comes again.

    def go_on(self):
        """Sends again, after a pause, once nothing of the conversation is on its way."""
        if not self.stalled or self.in_flight:
            return
        error, new_chain = self.stalled
        time.sleep(max(error.retry_after_ms, 50) / 1000)
        if new_chain:
            self.new_chain()
        self.rewind()


class Clock:
    """The server's clock: its time in Welcome, plus what has passed here since."""

    def __init__(self, welcome):
        self.server_ms = welcome.server_time_ms
        self.at = time.monotonic()

    def now_ms(self):
        return self.server_ms + int((time.monotonic() - self.at) * 1000)


def show(**line):
    print(json.dumps(line), flush=True)


def session(server, args, outbox, attach, cursor, received, deadline):
    """One session, from hello to its end. Returns (cursor, received, goodbye); raises grpc.RpcError when it breaks."""
    frames = queue.SimpleQueue()
    hello = v1.Hello(user=args.user, device=args.device, key=args.key, client="send_and_listen.py")
    if args.count:
        hello.attach.CopyFrom(attach)
        if cursor:
            # An acknowledgement whose answer may never have come; what follows it is pushed.
            hello.attach.cursor.CopyFrom(cursor)
    frames.put(v1.ClientFrame(hello=hello))
    with grpc.insecure_channel(server) as channel:
        stub = messaging_pb2_grpc.MessagingStub(channel)
        stream = stub.Session(iter(frames.get, None), timeout=max(deadline - time.monotonic(), 0.001))
        clock, in_flight_max, closing = None, 0, False
        outbox.rewind()
        try:
            for frame in stream:
                kind = frame.WhichOneof("frame")
                if kind == "welcome":
                    clock, in_flight_max = Clock(frame.welcome), frame.welcome.in_flight_max
                    cursor = cursor or frame.welcome.cursor
                    # This client is still there, and it is the one that said hello first under this epoch.
                    frames.put(v1.ClientFrame(ping=v1.Ping()))
                    if not attach.HasField("client"):
                        attach.client.CopyFrom(frame.welcome.epoch)
                elif kind == "answer":
                    outbox.answer(frame.answer)
                elif kind == "entries":
                    cursor, received = take(frame.entries, cursor, received)
                    frames.put(v1.ClientFrame(ack=v1.Ack(cursor=cursor)))
                elif kind == "goodbye":
                    return cursor, received, frame.goodbye
                outbox.go_on()
                while clock and (send := outbox.next(clock, in_flight_max)):
                    frames.put(v1.ClientFrame(send=send))
                if not closing and not outbox.unanswered and received >= args.count:
                    # What was said is still answered, the last acknowledgement too, and then the stream ends.
                    frames.put(None)
                    closing = True
            return cursor, received, None
        finally:
            frames.put(None)


def take(entries, cursor, received):
    """Prints what is new. Only then may it be acknowledged: the acknowledgement deletes it."""
    last = cursor.seq if cursor.incarnation == entries.incarnation else 0
    for entry in entries.entries:
        # On the wire delivery is at-least-once; the cursor makes it once.
        if entry.seq > last:
            envelope = entry.envelope
            body = envelope.body.decode(errors="replace")
            # `from` is a word of Python's own.
            show(seq=entry.seq, id=envelope.id, **{"from": getattr(envelope, "from")}, body=body)
            last = entry.seq
            received += 1
    for skipped in entries.skipped:
        show(expired=[skipped.first, skipped.last])
        last = max(last, skipped.last)
    return v1.Cursor(incarnation=entries.incarnation, seq=last), received


def message_id(args, number):
    if not args.id:
        return str(uuid.uuid4())
    return args.id if len(args.text) == 1 else f"{args.id}-{number}"


def run(args):
    outbox = Outbox(args.to, [Message(message_id(args, n), text) for n, text in enumerate(args.text, 1)])
    servers, deadline = deque(args.server), time.monotonic() + args.timeout
    attach = v1.Attach(window_entries=256, on_first_frame=True)
    cursor, received = None, 0
    while time.monotonic() < deadline:
        pause = 0.2
        try:
            cursor, received, goodbye = session(
                servers[0], args, outbox, attach, cursor, received, deadline
            )
        except grpc.RpcError as error:
            print(f"{servers[0]}: {error.code().name}, trying another", file=sys.stderr)
            goodbye = None
        if not outbox.unanswered and received >= args.count:
            return 1 if outbox.refused else 0
        if goodbye is not None:
            code = v1.Code.Name(goodbye.error.code)
            if not goodbye.error.retryable:
                print(f"the server ended the session: {code}: {goodbye.error.message}", file=sys.stderr)
                return 1
            pause = max(goodbye.after_ms, goodbye.error.retry_after_ms) / 1000
            servers.extend(server for server in goodbye.servers if server not in servers)
        servers.rotate(-1)
        time.sleep(pause)
    return 4


def arguments():
    env = os.environ.get
    parser = argparse.ArgumentParser(description="Sends to one Roost user and receives the own queue.")
    parser.add_argument("--server", default=env("ROOST_SERVER", "127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403"))
    parser.add_argument("--credentials", help="the file that `roost account add` wrote")
    parser.add_argument("--user", default=env("ROOST_USER"))
    parser.add_argument("--device", type=int, default=int(env("ROOST_DEVICE", "0")), help="its number")
    parser.add_argument("--key", default=env("ROOST_KEY"), help="the device key in base64")
    parser.add_argument("--to", default="", help="the recipient of TEXT")
    parser.add_argument("--id", help="the message's id; several messages get ID-1, ID-2, ...")
    parser.add_argument("--count", type=int, default=0, help="receive so many messages")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds, for the whole run")
    parser.add_argument("text", nargs="*")
    args = parser.parse_args()
    args.server = [server.removeprefix("http://").rstrip("/") for server in args.server.split(",")]
    if args.credentials:
        with open(args.credentials, encoding="utf-8") as file:
            known = json.load(file)
        args.user, args.device, args.key = known["user"], known["device"], known["key"]
    if not (args.user and args.device and args.key):
        parser.error("say --credentials, or --user, --device and --key")
    if args.text and not args.to:
        parser.error("say --to whom")
    args.key = base64.b64decode(args.key)
    return args


if __name__ == "__main__":
    sys.exit(run(arguments()))
