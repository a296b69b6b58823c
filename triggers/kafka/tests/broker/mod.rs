//! What the tests ask of a broker.

use krafka::{
    Kafka, Record,
    admin::{CreateTopicsOptions, NewTopic},
    producer::Producer,
};

/// A broker, and those who speak with it.
pub(crate) struct Server(pub(crate) sas_testkit::server::Server);

impl Server {
    pub(crate) async fn start(settings: &str, scram: Option<&str>) -> Option<Self> {
        let server = Self(sas_testkit::server::kafka(env!("CARGO_TARGET_TMPDIR"), settings, scram).await?);
        server.client().await;
        Some(server)
    }

    pub(crate) fn address(&self) -> String {
        self.0.address()
    }

    /// A client, when the broker answers.
    pub(crate) async fn client(&self) -> Kafka {
        for _ in 0..300 {
            if let Ok(client) = Kafka::builder(self.address()).client_id("test").connect().await {
                return client;
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        panic!("the broker does not answer");
    }

    pub(crate) async fn topic(&self, name: &str, partitions: i32) {
        let topic = NewTopic::new(name, partitions, 1).unwrap();
        let made = self.client().await.admin().create_topics([topic], CreateTopicsOptions::default()).await;
        made.unwrap().remove(name).unwrap().unwrap();
    }

    pub(crate) async fn producer(&self) -> Producer {
        self.client().await.producer().metrics_push(false).build().await.unwrap()
    }

    pub(crate) async fn restart(&mut self) {
        self.0.restart().await;
        self.client().await;
    }
}

/// Records `from..to` of `keys` keys: their number is the value, its remainder the key.
pub(crate) async fn produce(producer: &Producer, topic: &str, numbers: std::ops::Range<usize>, keys: usize) {
    let mut handles = Vec::new();
    for number in numbers {
        let record = Record::new(topic, number.to_string()).key(format!("k{}", number % keys));
        handles.push(producer.enqueue(record).await.unwrap());
    }
    for handle in handles {
        let _ = handle.await.unwrap();
    }
}
