//! A consumer group as the brokers know it: where it begins, and what it has not taken yet.

use std::collections::{BTreeSet, HashMap};

use krafka::{
    admin::{
        AdminClient, AlterConsumerGroupOffsetsOptions, DescribeTopicsOptions,
        ListConsumerGroupOffsetsOptions, ListOffsetsOptions, OffsetSpec,
    },
    consumer::TopicPartition,
    error::{ErrorCode, KrafkaError},
};
use sas_core::Result;

use crate::access::failed;

/// Where a group begins in a topic that it never read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Latest,
    Earliest,
}

/// A group, and the topics that it reads.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) topics: Vec<String>,
    pub(crate) start: Start,
}

/// The group's offset in each partition; `None`: it has none.
type Offsets = HashMap<TopicPartition, Option<i64>>;

impl Group {
    /// Gives the group an offset in every partition of topics in which it has none at all, so that what comes from now on is
    /// its own even if no host is there to read it. While others of the group run, that was done before.
    pub(crate) async fn begin(&self, admin: &AdminClient) -> Result<()> {
        let offsets = self.offsets(admin).await?;
        let known = topics_with_offsets(&offsets);
        let fresh: Vec<TopicPartition> =
            offsets.keys().filter(|partition| !known.contains(partition.topic())).cloned().collect();
        if fresh.is_empty() {
            return Ok(());
        }
        let spec = match self.start {
            Start::Latest => OffsetSpec::Latest,
            Start::Earliest => OffsetSpec::Earliest,
        };
        let begin = ends(admin, fresh, spec).await?;
        let made = admin
            .alter_consumer_group_offsets(&self.name, begin, AlterConsumerGroupOffsetsOptions::default())
            .await
            .map_err(failed("the group's first offsets"))?;
        for made in made.into_values() {
            match made {
                Err(error) if !others_run(&error) => return Err(failed("the group's first offsets")(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Records that the group has not taken: up to each partition's end from the group's offset, which follows deliveries
    /// only.
    pub(crate) async fn backlog(&self, admin: &AdminClient) -> Result<u64> {
        let offsets = self.offsets(admin).await?;
        let known = topics_with_offsets(&offsets);
        // Partitions that are younger than the group are read from their beginning; topics that it never read, from `start`.
        let unread: Vec<TopicPartition> = offsets
            .iter()
            .filter(|(partition, offset)| {
                offset.is_none() && (self.start == Start::Earliest || known.contains(partition.topic()))
            })
            .map(|(partition, _)| partition.clone())
            .collect();
        let ends_of = ends(admin, offsets.keys().cloned().collect(), OffsetSpec::Latest).await?;
        let begins = ends(admin, unread, OffsetSpec::Earliest).await?;
        let waiting = ends_of.iter().map(|(partition, end)| {
            let from = match offsets.get(partition) {
                Some(Some(offset)) => Some(offset),
                _ => begins.get(partition),
            };
            from.map_or(0, |from| u64::try_from(end - from).unwrap_or(0))
        });
        Ok(waiting.sum())
    }

    async fn offsets(&self, admin: &AdminClient) -> Result<Offsets> {
        let topics = admin
            .describe_topics(&self.topics, DescribeTopicsOptions::default())
            .await
            .map_err(failed("the topics"))?;
        let mut partitions = Vec::new();
        for (name, topic) in topics {
            let topic = topic.map_err(failed(&format!("topic {name}")))?;
            partitions.extend(
                topic.partitions.iter().map(|part| TopicPartition::new(name.clone(), part.partition)),
            );
        }
        let options = ListConsumerGroupOffsetsOptions::default().partitions(partitions.clone());
        let mut known = admin
            .list_consumer_group_offsets(&self.name, options)
            .await
            .map_err(failed("the group's offsets"))?;
        let mut offsets = Offsets::new();
        for partition in partitions {
            let offset = match known.remove(&partition) {
                Some(answer) => answer.map_err(failed("the group's offsets"))?.offset,
                None => None,
            };
            offsets.insert(partition, offset.filter(|offset| *offset >= 0));
        }
        Ok(offsets)
    }
}

/// Whether the broker takes no offsets from outside of the group, since it has members: they have made the first ones.
fn others_run(error: &KrafkaError) -> bool {
    matches!(
        error,
        KrafkaError::Broker {
            code: ErrorCode::UnknownMemberId
                | ErrorCode::IllegalGeneration
                | ErrorCode::StaleMemberEpoch
                | ErrorCode::NonEmptyGroup
                | ErrorCode::RebalanceInProgress,
            ..
        }
    )
}

fn topics_with_offsets(offsets: &Offsets) -> BTreeSet<&str> {
    offsets.iter().filter(|(_, offset)| offset.is_some()).map(|(partition, _)| partition.topic()).collect()
}

async fn ends(
    admin: &AdminClient,
    partitions: Vec<TopicPartition>,
    spec: OffsetSpec,
) -> Result<HashMap<TopicPartition, i64>> {
    if partitions.is_empty() {
        return Ok(HashMap::new());
    }
    let asked = partitions.into_iter().map(|partition| (partition, spec));
    let answers = admin
        .list_offsets(asked, ListOffsetsOptions::default())
        .await
        .map_err(failed("the partitions' offsets"))?;
    answers
        .into_iter()
        .map(|(partition, answer)| Ok((partition, answer.map_err(failed("a partition's offset"))?.offset)))
        .collect()
}
