// packages: ai @ai-sdk/openai @ai-sdk/openai-compatible zod
import {embedMany, generateObject, generateText, stepCountIs, streamObject, streamText, tool} from "ai";
import {createOpenAI} from "@ai-sdk/openai";
import {createOpenAICompatible} from "@ai-sdk/openai-compatible";
import {z} from "zod";

const set = {baseURL: process.env.BASE, apiKey: process.env.KEY};
const like = createOpenAICompatible(
  {...set, name: "pfi", supportsStructuredOutputs: true, includeUsage: true});
const schema = z.object({colour: z.enum(["red", "blue"])});
const check = (holds, what) => {
  if (!holds) throw new Error(what);
};
const pick = tool({
  description: "Pick one.",
  inputSchema: z.object({side: z.enum(["left", "right"])}),
  execute: async ({side}) => `you have ${side}`,
});

for (const model of [createOpenAI(set)("ann"), createOpenAI(set).chat("ann"), like("ann")]) {
  const plain = await generateText({model, system: "Be brief.", prompt: "Hello", maxOutputTokens: 20});
  check(plain.usage.outputTokens, "no usage");
  let parts = [];
  const stream = streamText({model, prompt: "Hello", maxOutputTokens: 20});
  for await (const part of stream.fullStream) parts.push(part);
  check(parts.length > 2 && !parts.some((part) => part.type === "error"), JSON.stringify(parts));
  check((await stream.usage).outputTokens, "no usage of a stream");
  const {object} = await generateObject({model, schema, prompt: "Choose"});
  check(["red", "blue"].includes(object.colour), "no colour");
  const growing = streamObject({model, schema, prompt: "Choose"});
  for await (const _ of growing.partialObjectStream);
  check(["red", "blue"].includes((await growing.object).colour), "no colour in a stream");

  // A call, its result, and what follows; whole and in pieces.
  const called = await generateText({
    model, prompt: "Pick", tools: {pick}, toolChoice: "required", maxOutputTokens: 120,
    stopWhen: stepCountIs(2),
  });
  check(called.steps[0].toolCalls.length, "no call");
  check(["left", "right"].includes(called.steps[0].toolCalls[0].input.side), "no side");
  const flow = streamText({
    model, prompt: "Pick", tools: {pick}, toolChoice: {type: "tool", toolName: "pick"},
    maxOutputTokens: 120,
  });
  for await (const part of flow.fullStream)
    if (part.type === "error") throw part.error;
  check((await flow.toolResults).length, "no result");

  // What was said before, by way of the client's own messages.
  const before = [{role: "user", content: "Pick"}, ...called.response.messages];
  const more = await generateText({
    model, maxOutputTokens: 20, messages: [...before, {role: "user", content: "And now?"}]});
  check(more.finishReason, "no end");

  const control = new AbortController();
  const given = streamText({model, prompt: "Hello", abortSignal: control.signal, onError: () => {}});
  for await (const _ of given.textStream) control.abort();
  const wrong = await generateText(
    {model, prompt: "word ".repeat(20000), maxRetries: 2}).catch((error) => error);
  check(wrong.statusCode === 400 && !wrong.isRetryable, String(wrong));
}
const vectors = await embedMany({model: like.textEmbeddingModel("minilm"), values: ["a", "b"]});
check(vectors.embeddings.length === 2, "no vectors");
