// A gRPC server in another language, without any SDK of Baton: `node worker.mjs --port 0`.
// Prints `listening on 127.0.0.1:PORT` once calls are answered; SIGTERM ends it. `--no-reflection` serves none.
// `--work-stream` serves the work stream too.
//
// The reflection is that of the usual packages. Its descriptors differ from protoc's: one file for each package, named
// after it, without its imports; type names are relative; map entries are named after their field; and
// google.protobuf is a file of its own. A server that others wrote answers so too, which is why this one does.

import { fileURLToPath } from "node:url";
import path from "node:path";
import { parseArgs } from "node:util";

import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import { ReflectionService } from "@grpc/reflection";

import { WorkStream } from "./work_stream.mjs";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const ROOT = path.join(HERE, "..", "..");
const TOLD_METADATA = /^(idempotency-key|traceparent|tracestate|baton-.+)$/;
const DISCOUNT_BY_CODE = { WELCOME: 500n, SPRING: 1_000n };
const GOLD_PERCENT = 10;

const loading = { keepCase: true, longs: String, enums: String, oneofs: true, defaults: true };
const pricingProto = "pricing/v1/pricing.proto";
const workProto = "baton/worker/v1/work.proto";
const includeDirs = [path.join(HERE, "protos"), path.join(ROOT, "protos"), path.join(ROOT, "third_party/googleapis")];

const hang = { begun: 0, cancelled: [] };

class InvalidItem extends Error {}

function money(currencyCode, minorUnits) {
  return { currency_code: currencyCode, minor_units: minorUnits.toString() };
}

// Prices an item from its parts, or from the price of its material where it has none.
function priceItem(item, priceByMaterial) {
  const quantity = BigInt(item.quantity || 1);
  if (item.parts.length > 0) {
    const parts = item.parts.map((part) => priceItem(part, priceByMaterial));
    const one = parts.reduce((sum, part) => sum + part.minorUnits, 0n);
    return { name: item.name, minorUnits: one * quantity, parts };
  }
  const price = priceByMaterial[item.name];
  if (price === undefined) {
    throw new InvalidItem(`no price for ${item.name}`);
  }
  return { name: item.name, minorUnits: BigInt(price.minor_units) * quantity, parts: [] };
}

function pricedItem(priced, currencyCode) {
  return {
    name: priced.name,
    price: money(currencyCode, priced.minorUnits),
    parts: priced.parts.map((part) => pricedItem(part, currencyCode)),
  };
}

function percentOf(minorUnits, percent) {
  return (minorUnits * BigInt(Math.round(percent * 100))) / 10_000n;
}

function discountOf(request, net) {
  switch (request.discount) {
    case "percent":
      return ["DISCOUNT_KIND_PERCENT", percentOf(net, request.percent)];
    case "amount":
      return ["DISCOUNT_KIND_AMOUNT", BigInt(request.amount.minor_units)];
    case "code":
      return ["DISCOUNT_KIND_CODE", DISCOUNT_BY_CODE[request.code] ?? 0n];
    default:
      return request.tier === "CUSTOMER_TIER_GOLD"
        ? ["DISCOUNT_KIND_TIER", percentOf(net, GOLD_PERCENT)]
        : ["DISCOUNT_KIND_UNSPECIFIED", 0n];
  }
}

// Adds a google.protobuf.Duration to a google.protobuf.Timestamp.
function addDuration(timestamp, duration) {
  const nanos = (timestamp?.nanos ?? 0) + (duration?.nanos ?? 0);
  const seconds = BigInt(timestamp?.seconds ?? 0) + BigInt(duration?.seconds ?? 0) + BigInt(Math.floor(nanos / 1e9));
  return { seconds: seconds.toString(), nanos: ((nanos % 1e9) + 1e9) % 1e9 };
}

function toldMetadata(metadata) {
  return Object.fromEntries(Object.entries(metadata.getMap()).filter(([key]) => TOLD_METADATA.test(key)));
}

function quote(call, callback) {
  const { request } = call;
  const currencyCode = Object.values(request.price_by_material)[0]?.currency_code || "EUR";
  let priced;
  try {
    if (!request.item) {
      throw new InvalidItem("no item");
    }
    priced = priceItem(request.item, request.price_by_material);
  } catch (error) {
    if (!(error instanceof InvalidItem)) {
      throw error;
    }
    callback({ code: grpc.status.INVALID_ARGUMENT, details: error.message });
    return;
  }
  const [kind, wanted] = discountOf(request, priced.minorUnits);
  const amount = wanted > priced.minorUnits ? priced.minorUnits : wanted;
  callback(null, {
    net: money(currencyCode, priced.minorUnits),
    total: money(currencyCode, priced.minorUnits - amount),
    expire_time: addDuration(request.ask_time, request.validity),
    discount: { kind, amount: money(currencyCode, amount) },
    priced: pricedItem(priced, currencyCode),
    pieces_by_warehouse: request.pieces_by_warehouse,
    metadata: toldMetadata(call.metadata),
    tier: request.tier,
  });
}

// The wire form of one length-delimited field.
function field(number, content) {
  const bytes = Buffer.from(content);
  return Buffer.concat([varint((number << 3) | 2), varint(bytes.length), bytes]);
}

function varint(value) {
  const bytes = [];
  for (; value > 127; value >>>= 7) {
    bytes.push((value & 127) | 128);
  }
  return Buffer.from([...bytes, value]);
}

// google.rpc.Status with one google.rpc.ErrorInfo, written by hand: that is all the protobuf it takes.
function statusDetails(code, message, reason, metadata) {
  const entries = Object.entries(metadata).map(([key, value]) => field(3, Buffer.concat([field(1, key), field(2, value)])));
  const info = Buffer.concat([field(1, reason), field(2, "pricing.example"), ...entries]);
  const any = Buffer.concat([field(1, "type.googleapis.com/google.rpc.ErrorInfo"), field(2, info)]);
  return Buffer.concat([Buffer.from([8, code]), field(2, message), field(3, any)]);
}

function fail(call, callback) {
  const { reason, message, metadata } = call.request;
  const trailers = new grpc.Metadata();
  const code = grpc.status.FAILED_PRECONDITION;
  trailers.set("grpc-status-details-bin", statusDetails(code, message, reason, metadata));
  callback({ code, details: message, metadata: trailers });
}

function hangCall(call) {
  hang.begun += 1;
  call.on("cancelled", () => hang.cancelled.push(call.request.name));
}

function cancelled(_call, callback) {
  callback(null, { begun_count: hang.begun, cancelled_count: hang.cancelled.length, names: hang.cancelled });
}

function main() {
  const { values } = parseArgs({
    options: {
      port: { type: "string", default: "0" },
      "no-reflection": { type: "boolean", default: false },
      "work-stream": { type: "boolean", default: false },
    },
  });
  const streams = values["work-stream"];
  const definition = loader.loadSync(streams ? [pricingProto, workProto] : pricingProto, { ...loading, includeDirs });
  const service = definition["pricing.v1.PricingService"];
  const handlers = { Quote: quote, Fail: fail, Hang: hangCall, Cancelled: cancelled };
  const server = new grpc.Server();
  server.addService(service, handlers);
  if (streams) {
    const work = new WorkStream("pricing", { "pricing.v1.PricingService": [service, handlers] });
    server.addService(definition["baton.worker.v1.WorkerService"], { Work: (call) => work.carry(call) });
  }
  if (!values["no-reflection"]) {
    new ReflectionService(definition).addToServer(server);
  }
  server.bindAsync(`127.0.0.1:${values.port}`, grpc.ServerCredentials.createInsecure(), (error, port) => {
    if (error) {
      console.error(`cannot listen: ${error.message}`);
      process.exit(1);
    }
    console.log(`listening on 127.0.0.1:${port}`);
  });
  for (const signal of ["SIGTERM", "SIGINT"]) {
    // Calls of Hang would never end by themselves, so nothing is waited for.
    process.on(signal, () => {
      server.forceShutdown();
      process.exit(0);
    });
  }
}

main();
