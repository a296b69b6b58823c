//! What was used, and what it cost.

use std::{collections::BTreeMap, sync::Arc};

use sas_core::{
    Error, ErrorKind, Hour, HourUsage, MeterTotals, Result, RevisionUsage, Timestamp, UsageGap, UsageScope,
};
use serde::Serialize;

use super::Control;
use crate::{Cost, PriceTable, stamp::rfc3339};

/// What was used, by revision and in all.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct UsageView {
    /// By revision, in the order of their names.
    pub usage: Vec<RevisionUsage>,
    /// All of it together.
    pub total: MeterTotals,
}

impl From<Vec<RevisionUsage>> for UsageView {
    fn from(usage: Vec<RevisionUsage>) -> Self {
        let mut total = MeterTotals::default();
        usage.iter().for_each(|used| total.add_all(&used.totals));
        Self { usage, total }
    }
}

/// What a namespace used.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct NamespaceUsageView {
    /// The namespace; empty for the host's own stems.
    pub namespace: String,
    /// What it used.
    pub totals: MeterTotals,
}

/// What one revision used within one hour.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct HourUsageView {
    /// The begin of the hour, RFC 3339.
    pub hour: String,
    /// The namespace.
    pub namespace: String,
    /// The service.
    pub service: String,
    /// The revision.
    pub revision: String,
    /// What it used.
    pub totals: MeterTotals,
}

impl From<HourUsage> for HourUsageView {
    fn from(used: HourUsage) -> Self {
        let HourUsage { hour, namespace, service, revision, totals, .. } = used;
        Self { hour: rfc3339(hour.start()), namespace, service, revision, totals }
    }
}

/// A time of which readings are missing, since the host died before they were written.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct UsageGapView {
    /// Up to here nothing is missing, RFC 3339.
    pub from: String,
    /// When the platform was there again, RFC 3339.
    pub until: String,
}

impl From<UsageGap> for UsageGapView {
    fn from(gap: UsageGap) -> Self {
        Self { from: rfc3339(gap.from), until: rfc3339(gap.until) }
    }
}

/// A page of hourly use.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct UsageHoursView {
    /// What was used, in the order of hours and names.
    pub hours: Vec<HourUsageView>,
    /// Where the next page begins; absent with the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The gaps that reach into the hours asked for.
    pub gaps: Vec<UsageGapView>,
}

impl Control {
    /// What the revisions of `scope` used since they were first deployed, over restarts; those that are gone too.
    ///
    /// # Errors
    /// `Unsupported` when the meter sink only passes readings on; `Unavailable` when the store can't be reached.
    pub async fn usage_of(&self, scope: &UsageScope) -> Result<UsageView> {
        self.usage()?.totals(scope).await.map(UsageView::from)
    }

    /// What each namespace used since the store was made.
    ///
    /// # Errors
    /// As [`Control::usage_of`].
    pub async fn usage_by_namespace(&self) -> Result<Vec<NamespaceUsageView>> {
        let mut sums: BTreeMap<String, MeterTotals> = BTreeMap::new();
        for used in self.usage()?.totals(&UsageScope::all()).await? {
            sums.entry(used.namespace).or_default().add_all(&used.totals);
        }
        Ok(sums.into_iter().map(|(namespace, totals)| NamespaceUsageView { namespace, totals }).collect())
    }

    /// What the revisions of `scope` used by hour, from the hour of `from` to the hour of `until` (not in it); at most
    /// `limit` entries after the `next` of the page before.
    ///
    /// # Errors
    /// As [`Control::usage_of`]; `InvalidSpec` for an `after` that is not of such a page.
    pub async fn usage_hours(
        &self,
        scope: &UsageScope,
        from: Timestamp,
        until: Timestamp,
        after: Option<&str>,
        limit: usize,
    ) -> Result<UsageHoursView> {
        let usage = self.usage()?;
        let (first, end) = (Hour::of(from), Hour::of(until));
        let page = usage.hours(scope, first, end, after, limit).await?;
        let gaps = usage.gaps().await?.into_iter();
        let gaps = gaps.filter(|gap| gap.until >= first.start() && gap.from < end.start());
        Ok(UsageHoursView {
            hours: page.hours.into_iter().map(HourUsageView::from).collect(),
            next: page.next,
            gaps: gaps.map(UsageGapView::from).collect(),
        })
    }

    /// From now on costs are told by these prices; `None`: not at all.
    pub fn set_prices(&self, prices: Option<PriceTable>) {
        self.prices.store(prices.map(Arc::new));
    }

    /// What the use of `scope` costs by the platform's price table: within the hours from `from` to `until` (not in it), or
    /// in all.
    ///
    /// # Errors
    /// As [`Control::usage_of`]; `Unsupported` when the platform was given no prices.
    pub async fn usage_cost(
        &self,
        scope: &UsageScope,
        hours: Option<(Timestamp, Timestamp)>,
    ) -> Result<Cost> {
        let Some(prices) = self.prices.load_full() else {
            let message = "this platform has no price table: give it one by PlatformBuilder::prices";
            return Err(Error::new(ErrorKind::Unsupported, "usage cost", message));
        };
        let Some((from, until)) = hours else {
            return Ok(prices.cost(&self.usage()?.totals(scope).await?));
        };
        let mut sums: BTreeMap<(String, String, String), MeterTotals> = BTreeMap::new();
        let mut after: Option<String> = None;
        loop {
            let (from, until) = (Hour::of(from), Hour::of(until));
            let page = self.usage()?.hours(scope, from, until, after.as_deref(), 1_000).await?;
            for used in page.hours {
                let name = (used.namespace, used.service, used.revision);
                sums.entry(name).or_default().add_all(&used.totals);
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        let used: Vec<RevisionUsage> = sums
            .into_iter()
            .map(|((namespace, service, revision), totals)| {
                RevisionUsage::new(namespace, service, revision, totals)
            })
            .collect();
        Ok(prices.cost(&used))
    }
}
