// Decodes, preprocesses and runs the graph in a thread of its own: the page stays responsive meanwhile.

import * as ort from "onnxruntime-web/wasm";
import wasm from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";

import type { Preprocessing } from "./model.ts";
import { decode, pixelsOf } from "./picture.ts";
import { preprocess } from "./preprocess.ts";
import type { Answer, Explanation, Picture, Question, Requests } from "./protocol.ts";

// the runtime comes from the page's own folder, not from a CDN
ort.env.wasm.wasmPaths = { wasm: new URL(wasm, self.location.href).href };
// more threads need a page that is isolated by two HTTP headers, which a plain file server does not send
ort.env.wasm.numThreads = 1;

let session: ort.InferenceSession;
let preprocessing: Preprocessing;

self.onmessage = async ({ data }: MessageEvent<Question>) => {
  try {
    const result = await answer(data);
    reply({ id: data.id, result }, result && "bitmap" in result ? [result.bitmap] : []);
  } catch (error) {
    reply({ id: data.id, error: error instanceof Error ? error.message : String(error) });
  }
};

function reply(message: Answer, transfer: Transferable[] = []): void {
  self.postMessage(message, { transfer });
}

function answer(question: Question): Promise<Requests[Question["kind"]]["answer"]> {
  if (question.kind === "load") return load(question.model, question.preprocessing);
  return question.kind === "read" ? read(question.file) : explain(question.tensor, question.classIndex);
}

async function load(model: string, wanted: Preprocessing): Promise<null> {
  const file = await fetch(model);
  if (!file.ok) throw new Error("The page has no model.onnx: run prepare.py first.");
  const graph = new Uint8Array(await file.arrayBuffer());
  try {
    session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  } catch (error) {
    throw new Error(`ONNX Runtime cannot load model.onnx: ${error instanceof Error ? error.message : error}`);
  }
  preprocessing = wanted;
  const [height, width] = wanted.size;
  // the first run also prepares the weights: nobody's picture shall wait for that
  await explain(new Float32Array(wanted.channels * height * width), 0);
  return null;
}

async function read(file: Blob): Promise<Picture> {
  const bitmap = await decode(file);
  return { bitmap, ...preprocess(pixelsOf(bitmap), preprocessing) };
}

async function explain(tensor: Float32Array<ArrayBuffer>, classIndex: number): Promise<Explanation> {
  const [height, width] = preprocessing.size;
  const inputs = {
    image: new ort.Tensor("float32", tensor, [1, preprocessing.channels, height, width]),
    // int64, also for one number; a negative one means the top class
    class_index: new ort.Tensor("int64", BigInt64Array.of(BigInt(classIndex)), [1]),
  };
  const start = performance.now();
  const { logits, heatmap, map, explained_class } = await session.run(inputs);
  const milliseconds = performance.now() - start;
  return {
    logits: logits!.data as Float32Array,
    heatmap: heatmap!.data as Float32Array,
    map: map!.data as Float32Array,
    height,
    width,
    explained: Number((explained_class!.data as BigInt64Array)[0]),
    milliseconds,
  };
}
