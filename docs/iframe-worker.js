// Search for pages that are read from the disk: browsers start no worker from there, so its script runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      this.inside = this.frame.contentWindow
      this.inside.postMessage = (data) => setTimeout(() => this.onmessage?.({ data }))
      const script = this.inside.document.createElement("script")
      this.begun = new Promise((resolve) => { script.onload = resolve })
      script.onerror = (event) => this.onerror?.(event)
      script.src = new URL(url, location)
      this.inside.document.body.append(script)
    }

    postMessage(data) {
      this.begun.then(() => this.inside.onmessage?.({ data }))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
