// packages: openai zod
import OpenAI from "openai";
import {zodResponseFormat, zodTextFormat} from "openai/helpers/zod";
import {z} from "zod";

const client = new OpenAI({baseURL: process.env.BASE, apiKey: process.env.KEY});
const messages = [{role: "user", content: "Hello"}];
const ask = {model: "ann", max_tokens: 5, messages};
const check = (holds, what) => {
  if (!holds) throw new Error(what);
};

// Answers, whole and in pieces.
check((await client.chat.completions.create(ask)).usage.total_tokens, "no usage");
let chunks = 0;
for await (const _ of await client.chat.completions.create({...ask, stream: true})) chunks++;
check(chunks > 1, "no stream");
const helped = client.chat.completions.stream(ask);
let heard = "";
helped.on("content", (delta) => (heard += delta));
const final = await helped.finalChatCompletion().catch((error) => error);
check(final instanceof Error ? /length/i.test(final.message) : true, String(final));

// Structured output, functions, several calls.
const Point = z.object({x: z.enum(["a", "b"])});
const format = zodResponseFormat(Point, "point");
const parsed = await client.chat.completions.parse({model: "ann", messages, response_format: format});
check(["a", "b"].includes(parsed.choices[0].message.parsed.x), "no point");
const text = {format: zodTextFormat(Point, "point")};
const shaped = await client.responses.parse({model: "ann", input: "Hello", text});
check(["a", "b"].includes(shaped.output_parsed.x), "no point from responses");
const parameters = {type: "object", properties: {heads: {type: "boolean"}}, required: ["heads"]};
const fn = {name: "throw", description: "Throw a coin.", parameters};
const tools = [{type: "function", function: fn}];
const asked = await client.chat.completions.create(
  {model: "ann", messages, tools, tool_choice: "required", parallel_tool_calls: true});
const calls = asked.choices[0].message.tool_calls;
for (const call of calls)
  check(typeof JSON.parse(call.function.arguments).heads === "boolean", "no coin");
const results = calls.map((call) => ({role: "tool", tool_call_id: call.id, content: "heads"}));
await client.chat.completions.create(
  {...ask, tools, tool_choice: "none", messages: [...messages, asked.choices[0].message, ...results]});
let thrown = 0;
const run = client.chat.completions.runTools({
  model: "ann", messages, max_tokens: 60,
  tools: [{type: "function", function: {...fn, parse: JSON.parse, function: () => `${++thrown}`}}],
}, {maxChatCompletions: 2});
await run.done().catch((error) => check(/length/i.test(error.message), error.message));

// The Responses API, whole and in pieces.
const reply = await client.responses.create({model: "ann", input: "Hello", max_output_tokens: 5});
check(reply.output.length, "no output");
const events = [];
const flow = await client.responses.create(
  {model: "ann", input: "Hello", max_output_tokens: 5, stream: true});
for await (const event of flow) events.push(event.type);
check(/^response\.(completed|incomplete)$/.test(events.at(-1)), events.at(-1));

// The rest, errors, and an answer that is given up.
const vectors = await client.embeddings.create({model: "minilm", input: ["a", "b"]});
check(vectors.data[1].embedding.length > 1, "no vector");
const list = [];
for await (const model of client.models.list()) list.push(model.id);
check(list.includes("ann"), "no models");
const wrong = await client.chat.completions.create({...ask, model: "gpt-4o"}).catch((e) => e);
check(wrong instanceof OpenAI.NotFoundError && wrong.code === "model_not_found", String(wrong));
const long = [{role: "user", content: "word ".repeat(20000)}];
const large = await client.chat.completions.create({...ask, messages: long}).catch((e) => e);
check(large.code === "context_length_exceeded", String(large));
const control = new AbortController();
const given = await client.chat.completions.create(
  {...ask, max_tokens: 60, stream: true}, {signal: control.signal});
for await (const _ of given) control.abort();
await Promise.all(Array.from({length: 6}, () => client.chat.completions.create(ask)));
