// The page as the tests use it: every explanation is recorded, and every request that would leave its origin.

import { type Page, test as base, expect } from "@playwright/test";

import type { Explanation } from "../src/protocol.ts";

/** What the page tells of an explanation. */
export type Recorded = Explanation & { name: string; tensor: Float32Array };

export class Camkit {
  constructor(readonly page: Page) {}

  get status() {
    return this.page.getByRole("status");
  }

  get alert() {
    return this.page.getByRole("alert");
  }

  bar(name: string) {
    return this.page.getByRole("radio", { name });
  }

  /** Does something to the page and waits for the explanation that follows. */
  async explanation(act: () => Promise<unknown>): Promise<Recorded> {
    const before = await this.page.evaluate(() => window.explanations?.length ?? 0);
    await act();
    await this.page.waitForFunction((count) => window.explanations.length > count, before);
    return this.page.evaluate(() => window.explanations.at(-1)!);
  }

  /** Drops a file on the page, as a hand would. */
  async drop(name: string, type: string, content: Buffer): Promise<void> {
    const transfer = await this.page.evaluateHandle(
      ([name, type, text]) => {
        const file = new File([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], name, { type });
        const transfer = new DataTransfer();
        transfer.items.add(file);
        return transfer;
      },
      [name, type, content.toString("base64")] as const,
    );
    await this.page.dispatchEvent("main", "drop", { dataTransfer: transfer });
  }
}

declare global {
  interface Window {
    explanations: Recorded[];
  }
}

export const test = base.extend<{ camkit: Camkit; requests: string[] }>({
  requests: async ({ page }, use) => {
    const addresses: string[] = [];
    page.on("request", (request) => addresses.push(request.url()));
    await use(addresses);
  },
  camkit: async ({ page, baseURL, requests }, use) => {
    await page.addInitScript(() => {
      window.explanations = [];
      document.addEventListener("explained", (event) => window.explanations.push((event as CustomEvent).detail));
    });
    const problems: string[] = [];
    page.on("pageerror", (error) => problems.push(error.message));
    const camkit = new Camkit(page);
    await use(camkit);
    const own = new URL(baseURL!).origin;
    expect(requests.filter((address) => !/^(blob|data):/.test(address) && new URL(address).origin !== own)).toEqual([]);
    expect(problems).toEqual([]);
  },
});

export { expect };
