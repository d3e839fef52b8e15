"""Calls any method of a Roost node by server reflection, as grpcurl does: no generated code, JSON in and out.

    pip install grpcio grpcio-reflection
    python docs/examples/call.py 127.0.0.1:7401                                     # lists services and methods
    python docs/examples/call.py 127.0.0.1:7401 grpc.health.v1.Health/Check '{"service": "roost.v1.Messaging"}'
    python docs/examples/call.py 127.0.0.1:7401 roost.admin.v1.Admin/Status '{}' \
        -H "authorization: Bearer $(cat .roost/admin.token)"

A method that takes a stream gets one message per JSON argument, and then the end of the stream. Every answer is
printed as one JSON object. Exit codes: 0 done, 1 the call failed, 64 usage.
"""

import argparse
import json
import sys

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha import reflection_pb2 as reflection

# The messages are those of v1alpha, to which the Python package still keeps; the service is v1.
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


def reflect(channel, request):
    call = channel.stream_stream(
        REFLECTION,
        request_serializer=reflection.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection.ServerReflectionResponse.FromString,
    )
    response = next(call(iter([request])))
    if response.HasField("error_response"):
        raise LookupError(response.error_response.error_message)
    return response


def services(channel):
    listed = reflect(channel, reflection.ServerReflectionRequest(list_services="*"))
    return [service.name for service in listed.list_services_response.service]


def load(channel, pool, request, known):
    """Adds the files that a reflection request names, what they import first."""
    for serialized in reflect(channel, request).file_descriptor_response.file_descriptor_proto:
        file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
        if file.name in known:
            continue
        known.add(file.name)
        for dependency in file.dependency:
            if dependency not in known:
                load(channel, pool, reflection.ServerReflectionRequest(file_by_filename=dependency), known)
        pool.Add(file)


def service(channel, name):
    pool = descriptor_pool.DescriptorPool()
    load(channel, pool, reflection.ServerReflectionRequest(file_containing_symbol=name), set())
    return pool.FindServiceByName(name)


def list_all(channel):
    for name in services(channel):
        for method in service(channel, name).methods:
            streams = ["stream " if streamed else "" for streamed in (method.client_streaming, method.server_streaming)]
            print(f"{name}/{method.name}({streams[0]}{method.input_type.full_name})"
                  f" returns ({streams[1]}{method.output_type.full_name})")


def call(channel, path, texts, headers):
    service_name, _, method_name = path.partition("/")
    method = service(channel, service_name).methods_by_name[method_name]
    request_type = message_factory.GetMessageClass(method.input_type)
    response_type = message_factory.GetMessageClass(method.output_type)
    requests = [json_format.Parse(text, request_type(), descriptor_pool=method.input_type.file.pool) for text in texts]
    stream = channel.stream_stream(
        f"/{path}",
        request_serializer=request_type.SerializeToString,
        response_deserializer=response_type.FromString,
    )
    # On the wire a single message is a stream of one, so this serves all four kinds of methods.
    for response in stream(iter(requests), metadata=headers):
        print(json.dumps(json_format.MessageToDict(response, preserving_proto_field_name=True)), flush=True)


def main():
    parser = argparse.ArgumentParser(description="Calls a method by server reflection.")
    parser.add_argument("server", help="host:port")
    parser.add_argument("method", nargs="?", help="for example grpc.health.v1.Health/Check; without it all are listed")
    parser.add_argument("json", nargs="*", help="the request, or the requests of a stream")
    parser.add_argument("-H", "--header", action="append", default=[], help="name: value")
    args = parser.parse_args()
    headers = [tuple(part.strip() for part in header.split(":", 1)) for header in args.header]
    with grpc.insecure_channel(args.server) as channel:
        try:
            if args.method:
                call(channel, args.method, args.json or ["{}"], headers)
            else:
                list_all(channel)
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}", file=sys.stderr)
            return 1
        except (LookupError, json_format.ParseError) as error:
            print(f"{error}", file=sys.stderr)
            return 64
    return 0


if __name__ == "__main__":
    sys.exit(main())
