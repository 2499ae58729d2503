// Questions to the server. Errors carry the message and the hint that the command line would print.

export class ApiError extends Error {
  constructor(message, hint) {
    super(message);
    this.hint = hint;
  }
}

async function answer(response) {
  if (response.ok) return response;
  let told = {};
  try {
    told = await response.json();
  } catch {
    // A crash of the server answers with plain text; its traceback is in the terminal.
  }
  throw new ApiError(told.error || `the server answered ${response.status}`, told.hint || "");
}

export async function get(path, parameters = {}) {
  const query = new URLSearchParams(parameters);
  return (await answer(await fetch(`/api/${path}?${query}`))).json();
}

async function send(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return answer(await fetch(`/api/${path}`, { method: "POST", headers, body: JSON.stringify(body), signal }));
}

export const post = async (path, body, signal) => (await send(path, body, signal)).json();
export const postForText = async (path, body) => (await send(path, body)).text();
