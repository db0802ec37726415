document.getElementById("app").textContent = await (await fetch("/v1/status")).text();
