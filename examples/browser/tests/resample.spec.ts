// The resize against Pillow's, without a browser.

import { resample } from "../src/resample.ts";
import type { Preprocessing } from "../src/model.ts";
import { bytes, expected } from "./expected.ts";
import { expect, test } from "@playwright/test";

for (const { interpolation, from, to } of expected.resized) {
  test(`${interpolation} to ${to[0]} x ${to[1]} gives Pillow's bytes`, () => {
    const plane = { height: from[0], width: from[1], values: bytes(from[2]) };
    const found = resample(plane, to[1], to[0], interpolation as Preprocessing["interpolation"]);
    expect([found.height, found.width]).toEqual([to[0], to[1]]);
    expect(found.values).toEqual(bytes(to[2]));
  });
}
