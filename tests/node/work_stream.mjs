// Serves baton.worker.v1.WorkerService for any service of @grpc/grpc-js: see docs/work-stream.md.
//
//   const work = new WorkStream("pricing", { "pricing.v1.PricingService": [Service.service, handlers] });
//   server.addService(definition["baton.worker.v1.WorkerService"], { Work: (call) => work.carry(call) });

import { randomUUID } from "node:crypto";
import { EventEmitter } from "node:events";

import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const FRAME_ITEMS = 500;
const FRAME_BYTES = 1 << 20;
const SILENT_HEARTBEATS = 3;
const SLOTS = 100;
const METADATA = {
  "idempotency-key": "idempotency_key",
  "baton-run": "run_id",
  "baton-step": "step",
  "baton-attempt": "attempt",
  "baton-delivery": "delivery",
  "baton-epoch": "epoch",
  "baton-step-token": "step_token",
  traceparent: "traceparent",
};

// Reads google.rpc.Status, which unary calls carry in their trailers.
const { Decode } = loader.fromJSON(
  {
    nested: {
      Any: { fields: { type_url: { type: "string", id: 1 }, value: { type: "bytes", id: 2 } } },
      Status: {
        fields: {
          code: { type: "int32", id: 1 },
          message: { type: "string", id: 2 },
          details: { rule: "repeated", type: "Any", id: 3 },
        },
      },
      Decoder: { methods: { Decode: { requestType: "Status", responseType: "Status" } } },
    },
  },
  { keepCase: true },
).Decoder;

export class WorkStream {
  #sessions = new Map();
  #methods = new Map();
  #instanceId = randomUUID();
  #started = 0;

  constructor(worker, services) {
    this.worker = worker;
    for (const [name, [definition, handlers]] of Object.entries(services)) {
      for (const [method, described] of Object.entries(definition)) {
        this.#methods.set(`${name}/${method}`, { ...described, handle: handlers[method] });
      }
    }
  }

  // Carries one stream, from Baton's opening to its end.
  carry(call) {
    let session;
    call.on("data", (frame) => {
      try {
        session ??= this.#open(call, frame.opening);
        session.heardAt = Date.now();
        frame.acknowledged.forEach((id) => session.outcomes.delete(id));
        frame.assignments.forEach((assignment) => this.#assign(session, assignment));
        frame.cancelled.forEach((id) => session.running.get(id)?.finish({ code: grpc.status.CANCELLED, details: "" }));
      } catch (error) {
        call.emit("error", { code: grpc.status.INVALID_ARGUMENT, details: error.message });
      }
    });
    call.on("end", () => call.end());
    for (const end of ["end", "cancelled", "error"]) {
      call.on(end, () => session && this.#lose(session, call));
    }
  }

  #open(call, opening) {
    if (!opening?.replica_id || !(opening.heartbeat_us > 0)) {
      throw new Error("the first frame has an opening with replica_id and heartbeat_us");
    }
    let session = this.#sessions.get(opening.replica_id);
    if (!session) {
      session = { lastId: 0n, running: new Map(), waiting: [], outcomes: new Map() };
      this.#sessions.set(opening.replica_id, session);
    }
    clearTimeout(session.forgetting);
    clearInterval(session.beating);
    session.call?.end();
    const beatMs = opening.heartbeat_us / 1000;
    const held = [...session.running.keys(), ...session.outcomes.keys()];
    const answer = { worker: this.worker, instance_id: this.#instanceId, credit: SLOTS, held };
    call.write({ opening: answer });
    Object.assign(session, { replicaId: opening.replica_id, call, resumeMs: opening.resume_us / 1000 });
    session.unsent = [...session.outcomes.values()];
    session.heardAt = Date.now();
    session.beating = setInterval(() => {
      if (Date.now() - session.heardAt >= SILENT_HEARTBEATS * beatMs) {
        call.end();
        this.#lose(session, call);
      } else {
        call.write({});
      }
    }, beatMs * 0.75);
    this.#send(session);
    return session;
  }

  #lose(session, call) {
    if (session.call !== call) {
      return;
    }
    session.call = undefined;
    clearInterval(session.beating);
    const held = session.running.size + session.outcomes.size;
    session.forgetting = setTimeout(() => {
      this.#sessions.delete(session.replicaId);
      session.running.forEach((one) => one.finish({ code: grpc.status.CANCELLED, details: "" }));
    }, held ? session.resumeMs : 0);
  }

  // Takes an assignment: its handler starts once a slot of the worker is free.
  #assign(session, assignment) {
    if (BigInt(assignment.id) <= session.lastId) {
      throw new Error(`assignment ${assignment.id} does not follow ${session.lastId}`);
    }
    session.lastId = BigInt(assignment.id);
    const call = new EventEmitter();
    const finish = (error, response) => this.#finish(session, assignment.id, call, error, response);
    const late = () => finish({ code: grpc.status.DEADLINE_EXCEEDED, details: "the handler did not end in time" });
    const timer = setTimeout(late, Math.min(assignment.timeout_us / 1000, 2 ** 31 - 1));
    const one = { finish, timer, started: false, start: () => this.#start(assignment, call, finish) };
    session.running.set(assignment.id, one);
    session.waiting.push(one);
    this.#fill();
  }

  #start(assignment, call, finish) {
    const method = this.#methods.get(assignment.method);
    if (!method?.handle) {
      return finish({ code: grpc.status.UNIMPLEMENTED, details: `${assignment.method} is not served` });
    }
    call.metadata = new grpc.Metadata();
    Object.entries(METADATA).forEach(([key, field]) => call.metadata.set(key, String(assignment[field])));
    try {
      call.request = method.requestDeserialize(assignment.request);
    } catch {
      return finish({ code: grpc.status.INVALID_ARGUMENT, details: "the request cannot be read" });
    }
    try {
      return method.handle(call, (error, response) => finish(error, response && method.responseSerialize(response)));
    } catch (error) {
      console.error(error);
      return finish({ code: grpc.status.UNKNOWN, details: "the handler failed" });
    }
  }

  #finish(session, id, call, error, response) {
    const one = session.running.get(id);
    if (!one) {
      return; // it has its outcome
    }
    session.running.delete(id);
    session.waiting = session.waiting.filter((other) => other !== one);
    clearTimeout(one.timer);
    this.#started -= one.started;
    if (error?.code === grpc.status.CANCELLED || error?.code === grpc.status.DEADLINE_EXCEEDED) {
      call.emit("cancelled");
    }
    const outcome = error ? { id, status: statusOf(error) } : { id, response };
    session.outcomes.set(id, outcome);
    session.unsent.push(outcome);
    setImmediate(() => this.#send(session)); // with what else ends in this turn
    this.#fill();
  }

  #fill() {
    for (const session of this.#sessions.values()) {
      while (session.waiting.length && this.#started < SLOTS) {
        const one = session.waiting.shift();
        one.started = true;
        this.#started += 1;
        one.start();
      }
    }
  }

  #send(session) {
    while (session.call && session.unsent.length) {
      const outcomes = [];
      for (let size = 0; session.unsent.length && outcomes.length < FRAME_ITEMS && size < FRAME_BYTES; ) {
        outcomes.push(session.unsent.shift());
        size += outcomes.at(-1).response?.length ?? 0;
      }
      session.call.write({ outcomes });
    }
  }
}

// The status of a failed call, with the details that a unary call has in its trailers.
function statusOf({ code, details, message, metadata }) {
  const [rich] = metadata?.get("grpc-status-details-bin") ?? [];
  return rich ? Decode.requestDeserialize(rich) : { code: code ?? grpc.status.UNKNOWN, message: details ?? message ?? "" };
}
