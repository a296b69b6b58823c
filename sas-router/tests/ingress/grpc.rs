//! gRPC through the gateway with tonic's client: all four kinds of calls, and errors in trailers.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, channel::Channel};
use sas_core::{Body, BoxError, Protocol, Request, Response};
use tonic::{
    Code, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::{Channel as Connection, Endpoint},
};

use crate::support::*;

/// Messages that are bytes.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; from.remaining()];
        from.copy_to_slice(&mut item);
        Ok(Some(item))
    }
}

/// The messages of a gRPC body, as they come.
struct Messages {
    body: Body,
    bytes: BytesMut,
}

impl Messages {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.bytes.len() >= 5 {
                let length = (&self.bytes[1..5]).get_u32() as usize;
                if self.bytes.len() >= 5 + length {
                    self.bytes.advance(5);
                    return Some(self.bytes.split_to(length).freeze());
                }
            }
            self.bytes.extend_from_slice(&self.body.frame().await?.ok()?.into_data().ok()?);
        }
    }
}

fn message(content: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(5 + content.len());
    message.put_u8(0);
    message.put_u32(content.len() as u32);
    message.put_slice(content);
    message.freeze()
}

fn trailers(status: &'static str) -> http::HeaderMap {
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static(status));
    trailers.insert("grpc-message", http::HeaderValue::from_static("said%20so"));
    trailers
}

/// A gRPC server of four methods.
async fn serve(request: Request) -> Response {
    let (head, body) = request.into_parts();
    assert_eq!(head.headers["te"], "trailers");
    let (mut out, answer) = Channel::<Bytes, BoxError>::new(1);
    let mut messages = Messages { body, bytes: BytesMut::new() };
    tokio::spawn(async move {
        match head.uri.path() {
            "/test.Echo/Each" => {
                while let Some(one) = messages.next().await {
                    out.send_data(message(&one)).await.unwrap();
                }
            }
            "/test.Echo/Repeat" => {
                let one = messages.next().await.unwrap();
                for _ in 0..3 {
                    out.send_data(message(&one)).await.unwrap();
                }
            }
            "/test.Echo/Join" => {
                let mut all = Vec::new();
                while let Some(one) = messages.next().await {
                    all.extend_from_slice(&one);
                }
                out.send_data(message(&all)).await.unwrap();
            }
            _ => {
                out.send_trailers(trailers("5")).await.unwrap();
                return;
            }
        }
        out.send_trailers(trailers("0")).await.unwrap();
    });
    let mut response = Response::new(Body::new(answer));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
    response
}

async fn connected() -> (Platform, sas_router::Server, Grpc<Connection>) {
    let mut h2c = spec();
    h2c.protocol = Protocol::H2c;
    let platform = Platform::with(h2c, Default::default(), Default::default()).await;
    let instance = instance(handler(serve)).await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let endpoint = Endpoint::from_shared(format!("http://{}", platform.address())).unwrap();
    let channel = endpoint.origin(format!("http://{HOST}").parse().unwrap()).connect().await.unwrap();
    (platform, instance, Grpc::new(channel))
}

fn path(path: &'static str) -> http::uri::PathAndQuery {
    http::uri::PathAndQuery::from_static(path)
}

#[tokio::test]
async fn one_message_each_way() {
    let (platform, _instance, mut client) = connected().await;
    for size in [0, 5, 100_000] {
        client.ready().await.unwrap();
        let sent = vec![b'x'; size];
        let got =
            client.unary(tonic::Request::new(sent.clone()), path("/test.Echo/Each"), Raw).await.unwrap();
        assert_eq!(got.into_inner(), sent);
    }
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn the_server_streams() {
    let (platform, _instance, mut client) = connected().await;
    client.ready().await.unwrap();
    let request = tonic::Request::new(b"again".to_vec());
    let answers =
        client.server_streaming(request, path("/test.Echo/Repeat"), Raw).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(|answer| answer.unwrap()).collect().await;
    assert_eq!(answers, vec![b"again".to_vec(); 3]);
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn the_client_streams() {
    let (platform, _instance, mut client) = connected().await;
    client.ready().await.unwrap();
    let parts = stream::iter([b"one ".to_vec(), b"two ".to_vec(), b"three".to_vec()]);
    let joined =
        client.client_streaming(tonic::Request::new(parts), path("/test.Echo/Join"), Raw).await.unwrap();
    assert_eq!(joined.into_inner(), b"one two three");
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn both_stream_at_once() {
    let (platform, _instance, mut client) = connected().await;
    client.ready().await.unwrap();
    let (say, said) = tokio::sync::mpsc::channel::<Vec<u8>>(1);
    let said = stream::unfold(said, async |mut said| said.recv().await.map(|one| (one, said)));
    let answers = client.streaming(tonic::Request::new(said), path("/test.Echo/Each"), Raw).await.unwrap();
    let mut answers = answers.into_inner();
    for n in 0..10_u8 {
        // Each answer is awaited before the next question: nothing is held back on the way.
        say.send(vec![n]).await.unwrap();
        assert_eq!(answers.next().await.unwrap().unwrap(), [n]);
    }
    drop(say);
    assert!(answers.next().await.is_none());
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn an_error_in_the_trailers_arrives() {
    let (platform, _instance, mut client) = connected().await;
    client.ready().await.unwrap();
    let request = tonic::Request::new(Vec::new());
    let status = client.unary(request, path("/test.Echo/Unknown"), Raw).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "said so"));
    platform.pool.until_idle().await;
}
