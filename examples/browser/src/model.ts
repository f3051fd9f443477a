// What the page must know of a model: model.json, which prepare.py writes from the metadata inside the graph.

export interface Preprocessing {
  size: [number, number]; // height, width
  resize: number | [number, number] | null;
  resize_mode: "exact" | "cover" | "contain";
  interpolation: "nearest" | "box" | "bilinear" | "hamming" | "bicubic" | "lanczos";
  mean: number[];
  std: number[];
  channels: 1 | 3;
  fill: number[];
}

export interface Model {
  model: string;
  method: string;
  layer: string | null;
  relu: boolean;
  class_names: string[];
  probability: "softmax" | "sigmoid";
  preprocessing: Preprocessing;
}

/** The JSON of a file beside the page; a missing file is the likely mistake of whoever sets the page up. */
export async function readJson<T>(address: string): Promise<T> {
  const answer = await fetch(address);
  // a server that answers every address with the page itself has no such file either
  if (!answer.ok || !answer.headers.get("content-type")?.includes("json")) {
    throw new Error(`The page has no ${address}: run prepare.py first.`);
  }
  return (await answer.json()) as T;
}
