// What camkit itself made of the pictures, as expectation.py wrote it.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

export interface Answer {
  asked: number;
  explained: number;
  logits: string;
  map: string;
  heatmap: string;
}

interface Expected {
  pictures: Record<string, { tensor: string; answers: Answer[] }>;
  resized: { interpolation: string; from: [number, number, string]; to: [number, number, string] }[];
}

export const pathOf = (name: string): string => fileURLToPath(new URL(`expected/${name}`, import.meta.url));
export const publicPath = (name: string): string => fileURLToPath(new URL(`../public/${name}`, import.meta.url));

const json = <T>(path: string): T => JSON.parse(readFileSync(path, "utf8")) as T;

export const expected = json<Expected>(pathOf("expected.json"));
export const samples = json<string[]>(publicPath("samples/index.json"));
export const model = json<{ class_names: string[]; preprocessing: { std: number[] } }>(publicPath("model.json"));

export const bytes = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, "base64"));
export const floats = (text: string): Float32Array => new Float32Array(bytes(text).buffer);

/** The largest difference, as a share of the reference's largest magnitude. */
export function relativeError(found: ArrayLike<number>, reference: Float32Array): number {
  if (found.length !== reference.length) throw new Error(`${found.length} values are not ${reference.length}.`);
  return largestDifference(found, reference) / reference.reduce((one, other) => Math.max(one, Math.abs(other)), 0);
}

export function largestDifference(found: ArrayLike<number>, reference: ArrayLike<number>): number {
  return Array.from(found).reduce((largest, value, index) => Math.max(largest, Math.abs(value - reference[index]!)), 0);
}
