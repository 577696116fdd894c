"""The web demo's parts, without torch and without the model: it speaks to the API over HTTP."""
