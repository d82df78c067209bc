// Asks a hub as any program with OpenAI's client does, and prints what it heard, as one JSON object.
// HUB: the base URL. KEY: a token.

import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.HUB, apiKey: process.env.KEY, maxRetries: 0, timeout: 20_000 });
const messages = [{ role: "user", content: "Why is the sky blue?" }];
const heard = {};

const create = (model, more = {}) => client.chat.completions.create({ model, messages, ...more });

async function failure(ask) {
  try {
    await ask();
  } catch (error) {
    return { kind: error.constructor.name, status: error.status ?? null, code: error.code ?? null };
  }
  return null;
}

heard.models = (await client.models.list()).data.map((model) => model.id);

const whole = await create("scripted/tokens=5,rate=0");
heard.whole = { text: whole.choices[0].message.content, model: whole.model, usage: whole.usage.completion_tokens };

const { data: chunks, response } = await create("scripted/tokens=5,rate=50,think_ms=300", {
  stream: true,
  stream_options: { include_usage: true },
}).withResponse();
heard.streamed = { text: "", stream: response.headers.get("x-headrace-stream"), silent: 0 };
for await (const chunk of chunks) {
  const delta = chunk.choices[0]?.delta;
  heard.streamed.text += delta?.content ?? "";
  if (delta && Object.keys(delta).length === 0 && !chunk.choices[0].finish_reason) heard.streamed.silent += 1;
  heard.streamed.finish = chunk.choices[0]?.finish_reason ?? heard.streamed.finish;
  heard.streamed.usage = chunk.usage?.completion_tokens;
  heard.streamed.id = chunk.id;
}

const gathered = await client.chat.completions
  .stream({ model: "scripted/tokens=1,rate=0,tools=2", messages })
  .finalChatCompletion();
heard.calls = gathered.choices[0].message.tool_calls.map((call) => call.function.arguments);

// OpenAI's own loop: it runs the function, sends the result back, and asks again.
const runner = client.chat.completions.runTools({
  model: "scripted/tool=look,rate=0",
  stream: true,
  messages: [{ role: "user", content: "Oslo" }],
  tools: [
    {
      type: "function",
      function: {
        name: "look",
        parse: JSON.parse,
        function: ({ at }) => `the sky over ${at}`,
        parameters: { type: "object", properties: { at: { type: "string" } }, required: ["at"] },
      },
    },
  ],
});
heard.looped = { text: await runner.finalContent(), roles: runner.messages.map((message) => message.role) };

heard.unknown = await failure(() => create("gpt-4o"));
heard.limited = await failure(() => create("scripted/rate=0,fail_after=0,code=provider_rate_limited"));
heard.partial = "";
heard.broken = await failure(async () => {
  for await (const chunk of await create("scripted/rate=20,fail_after=2", { stream: true })) {
    heard.partial += chunk.choices[0].delta.content ?? "";
  }
});

console.log(JSON.stringify(heard));
