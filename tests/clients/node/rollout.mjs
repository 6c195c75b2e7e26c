// Plays one rollout with a client for Node, and prints what it made of it as one line of JSON.
// It is asked on its standard input: {client, way, base_url, api_key, question, rounds}.
import { readFileSync } from "node:fs";
import OpenAI from "openai";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

const asked = JSON.parse(readFileSync(0, "utf8"));
const runBy = [];
const TYPES = {
  weather: [{ city: { type: "string" }, unit: { type: "string" }, days: { type: "number" } }, ["city"]],
  clock: [{ place: { type: "string" } }, ["place"]],
};
const HANDS = {
  weather: ({ city, unit = "C", days = 1 }) => `${city}: 21 °${unit}, for ${days} days`,
  clock: ({ place }) => `${place}: 9:30`,
};
const parameters = (name) => {
  const [properties, required] = TYPES[name];
  return { type: "object", properties, required };
};
const call = (name, input) => {
  runBy.push([name, input]);
  return HANDS[name](input);
};

const client = () =>
  new OpenAI({ baseURL: asked.base_url, apiKey: asked.api_key, maxRetries: 0, timeout: 15_000 });
const openaiTools = Object.keys(HANDS).map((name) => ({
  type: "function",
  function: { name, parameters: parameters(name) },
}));

// The loop that everybody writes around the client.
async function loop(ask) {
  const messages = [{ role: "user", content: asked.question }];
  for (;;) {
    const choice = (await ask({ model: "m", messages, tools: openaiTools })).choices[0];
    messages.push(choice.message);
    if (!choice.message.tool_calls?.length) {
      return { text: choice.message.content, finish: choice.finish_reason };
    }
    for (const { id, function: called } of choice.message.tool_calls) {
      const content = call(called.name, JSON.parse(called.arguments));
      messages.push({ role: "tool", tool_call_id: id, content });
    }
  }
}

// The client's own runner: it calls the tools and goes on by itself.
async function runner(stream) {
  const tools = Object.keys(HANDS).map((name) => ({
    type: "function",
    function: {
      name,
      parameters: parameters(name),
      parse: JSON.parse,
      function: (input) => call(name, input),
    },
  }));
  const messages = [{ role: "user", content: asked.question }];
  const run = client().chat.completions.runTools({ model: "m", messages, tools, stream });
  const final = await run.finalChatCompletion();
  return { text: final.choices[0].message.content, finish: final.choices[0].finish_reason };
}

async function sdk(model, way) {
  const tools = Object.fromEntries(
    Object.keys(HANDS).map((name) => [
      name,
      tool({
        description: name,
        inputSchema: jsonSchema(parameters(name)),
        execute: (input) => call(name, input),
      }),
    ]),
  );
  const ask = {
    model,
    tools,
    prompt: asked.question,
    stopWhen: stepCountIs(asked.rounds),
    maxRetries: 0,
  };
  const result = way === "stream" ? streamText(ask) : await generateText(ask);
  if (way === "stream") await result.consumeStream({ onError: (error) => { throw error; } });
  const usage = await result.totalUsage;
  return {
    text: await result.text,
    finish: await result.finishReason,
    reasoning: await result.reasoningText,
    output_tokens: usage.outputTokens,
  };
}

async function refused() {
  const found = {};
  const wrong = { model: "m", messages: [{ role: "tool", content: "x" }] };
  const long = { model: "m", messages: [{ role: "user", content: "word ".repeat(33_000) }] };
  for (const [name, body] of Object.entries({ wrong, long })) {
    try {
      await client().chat.completions.create(body);
    } catch (error) {
      const { status, param, code, type, requestID } = error;
      const kind = error.constructor.name;
      found[name] = { kind, status, param, code, type, has_request_id: Boolean(requestID) };
    }
  }
  return found;
}

const options = { name: "slime", baseURL: asked.base_url, apiKey: asked.api_key };
const PLAYS = {
  "openai/create": () => loop((body) => client().chat.completions.create(body)),
  "openai/stream": () => loop((body) => client().chat.completions.stream(body).finalChatCompletion()),
  "openai/run_tools": () => runner(false),
  "openai/run_tools_streamed": () => runner(true),
  "openai/refused": refused,
  "ai-openai/generate": () => sdk(createOpenAI(options).chat("m"), "generate"),
  "ai-openai/stream": () => sdk(createOpenAI(options).chat("m"), "stream"),
  "ai-compatible/generate": () => sdk(createOpenAICompatible(options)("m"), "generate"),
  "ai-compatible/stream": () =>
    sdk(createOpenAICompatible({ ...options, includeUsage: true })("m"), "stream"),
};

console.log(JSON.stringify({ ...(await PLAYS[asked.play]()), run_by: runBy }));
