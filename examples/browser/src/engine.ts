// The worker as the page sees it: one promise for each question.

import type { Answer, Kind, Requests } from "./protocol.ts";

export class Engine {
  private readonly worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
  private readonly waiting = new Map<number, Waiting>();
  private asked = 0;

  constructor() {
    this.worker.onmessage = ({ data }: MessageEvent<Answer>) => {
      const question = this.waiting.get(data.id);
      this.waiting.delete(data.id);
      if ("error" in data) question?.reject(new Error(data.error));
      else question?.resolve(data.result);
    };
    // a worker that cannot even start answers no question
    this.worker.onerror = () => {
      this.waiting.forEach(({ reject }) => reject(new Error("This browser cannot run the page's worker.")));
      this.waiting.clear();
    };
  }

  ask<K extends Kind>(kind: K, question: Requests[K]["question"]): Promise<Requests[K]["answer"]> {
    const id = (this.asked += 1);
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve: resolve as (result: unknown) => void, reject });
      this.worker.postMessage({ id, kind, ...question });
    });
  }
}

interface Waiting {
  resolve: (result: unknown) => void;
  reject: (error: Error) => void;
}
