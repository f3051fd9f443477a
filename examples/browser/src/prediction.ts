// From logits to the classes worth showing.

import type { Model } from "./model.ts";

const SHOWN = 10;

export interface Candidate {
  index: number;
  name: string;
  probability: number;
}

/** The most probable classes, best first. */
export function candidates(logits: Float32Array, { class_names, probability }: Model): Candidate[] {
  const probabilities = probability === "softmax" ? softmax(logits) : logits.map((logit) => 1 / (1 + Math.exp(-logit)));
  return Array.from(logits.keys())
    .sort((one, other) => logits[other]! - logits[one]!)
    .slice(0, SHOWN)
    .map((index) => ({ index, name: class_names[index]!, probability: probabilities[index]! }));
}

function softmax(logits: Float32Array): Float32Array {
  const highest = logits.reduce((one, other) => Math.max(one, other));
  const powers = logits.map((logit) => Math.exp(logit - highest));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

export function percent(probability: number): string {
  if (probability < 0.001) return "< 0.1 %";
  if (probability > 0.999) return "> 99.9 %";
  return `${(probability * 100).toFixed(1)} %`;
}
