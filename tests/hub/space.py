"""The smallest app with a LoginButton: tells visitors who they are, and with which token."""

from __future__ import annotations

import gradio as gr


def who(token: gr.OAuthToken | None, profile: gr.OAuthProfile | None) -> str:
    """The visitor's name, token and its scopes; "nobody" before the login."""
    return f"{profile.username}, {token.token}, {token.scope}" if token and profile else "nobody"


def main() -> None:
    with gr.Blocks() as demo:
        gr.LoginButton()
        told = gr.Textbox(label="You are")
        demo.load(who, None, told, api_name="who")
    demo.launch(ssr_mode=False)


if __name__ == "__main__":
    main()
