// What the page and its worker say to each other.

import type { Preprocessing } from "./model.ts";
import type { Prepared } from "./preprocess.ts";

export interface Picture extends Prepared {
  bitmap: ImageBitmap;
}

export interface Explanation {
  logits: Float32Array; // [classes]
  heatmap: Float32Array; // [H, W], in [0, 1]; in [-1, 1] for a graph exported without ReLU
  map: Float32Array; // [h, w], signed
  height: number;
  width: number;
  explained: number;
  milliseconds: number; // of the graph alone
}

/** Each kind of request: what is asked, and what is answered. */
export interface Requests {
  load: { question: { model: string; preprocessing: Preprocessing }; answer: null };
  read: { question: { file: Blob }; answer: Picture };
  explain: { question: { tensor: Float32Array<ArrayBuffer>; classIndex: number }; answer: Explanation };
}

export type Kind = keyof Requests;

export type Question<K extends Kind = Kind> = K extends Kind
  ? { id: number; kind: K } & Requests[K]["question"]
  : never;

export type Answer = { id: number } & ({ result: Requests[Kind]["answer"] } | { error: string });
