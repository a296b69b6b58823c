from fastapi import FastAPI

app = FastAPI()


@app.get("/items/{item}")
async def item(item: int, q: str | None = None):
    return {"item": item, "q": q}
