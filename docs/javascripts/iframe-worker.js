// A browser starts no Worker from file://. This one is a hidden frame of the same interface, so that the search works from disk.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.title = "search";
      document.body.append(this.frame);
      this.receive = (event) => {
        if (event.source !== this.frame.contentWindow) return;
        const message = new MessageEvent("message", { data: event.data });
        this.dispatchEvent(message);
        this.onmessage?.(message);
      };
      addEventListener("message", this.receive);
      const inside = this.frame.contentDocument;
      inside.open();
      inside.write(`<!doctype html><script>
        postMessage = (data) => parent.postMessage(data, "*");
        importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise((done, failed) => {
          const script = document.createElement("script");
          Object.assign(script, { src: url, onload: done, onerror: failed });
          document.head.append(script);
        })), Promise.resolve());
      </` + `script><script src="${url}"></` + `script>`);
      this.loaded = new Promise((done) => { this.frame.onload = done; });
      inside.close();
    }
    postMessage(data) { this.loaded.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }))); }
    terminate() { removeEventListener("message", this.receive); this.frame.remove(); }
  };
  window.Worker = window.IFrameWorker;
}
