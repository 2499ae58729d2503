// Requests to the server. Errors have the message and hint of the command line.

export class ApiError extends Error {
  constructor(message, hint) {
    super(message);
    this.hint = hint;
  }
}

async function answer(response) {
  if (response.ok) return response;
  let body = {};
  try {
    body = await response.json();
  } catch {
    // A crash of the server answers with plain text; its traceback is in the terminal.
  }
  throw new ApiError(body.error || `the server answered ${response.status}`, body.hint || "");
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
