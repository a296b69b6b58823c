//! The rules of a host, compiled for lookup.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, StatusCode};
use sas_core::{
    Affinity, Error, ErrorKind, HostPattern, RemoteTarget, Result, RevisionKey, Route, RouteAction,
    RouteError, RouteMatch, RouteQuery, RouteRule, RouteTarget, TenantKey,
};

use crate::{
    matching::{self, Conditions},
    seed::{hash, mix},
    split::Deal,
};

/// How many rules a host may have: they are tried one after the other.
pub(crate) const MAX_RULES: usize = 1_000;

/// The rules of a host. Nearly all hosts have one that sends everything to one revision: that takes 24 bytes.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    All { revision: RevisionKey, tenant: TenantKey, timeout_ms: u32, wakes: bool },
    Ordered(Arc<[Rule]>),
}

#[derive(Debug)]
pub(crate) struct Rule {
    prefix: Box<str>,
    conditions: Option<Conditions>,
    action: Action,
    tenant: TenantKey,
    timeout: Duration,
    affinity: Key,
    wakes: bool,
    fallback: Option<RevisionKey>,
    placeholder: bool,
    /// With an action that leads to another host.
    service: Option<Arc<str>>,
    /// As written, to find the same rule in the next version.
    matches: RouteMatch,
}

#[derive(Debug)]
enum Action {
    Disabled,
    One(RevisionKey),
    Deal(Deal),
    Redirect { status: StatusCode, location: Box<str> },
    Remote(Arc<str>),
}

#[derive(Debug)]
enum Key {
    None,
    Header(HeaderName),
    Cookie(Box<str>),
}

impl Entry {
    /// Compiles the rules of `host`.
    ///
    /// # Errors
    /// `InvalidSpec` with the host, the field and its value.
    pub(crate) fn compile(host: &HostPattern, rules: Vec<RouteRule>, seed: u64) -> Result<Self> {
        let invalid = |field: String, value: String, problem: &str| {
            Error::new(ErrorKind::InvalidSpec, "apply", format!("host {host}: {field}: {value:?}: {problem}"))
        };
        if let Some(problem) = crate::host::problem(host) {
            return Err(invalid("host".into(), host.to_string(), problem));
        }
        if rules.len() > MAX_RULES {
            let problem = format!("at most {MAX_RULES} rules per host");
            return Err(invalid("rules".into(), rules.len().to_string(), &problem));
        }
        if let [rule] = rules.as_slice()
            && let Some(simple) = Self::simple(rule)
        {
            return Ok(simple);
        }
        let name = match host {
            HostPattern::Exact(host) | HostPattern::Wildcard(host) => host.as_str(),
            HostPattern::Any => "",
        };
        let seed = hash(seed, name.as_bytes());
        let mut compiled = Vec::with_capacity(rules.len());
        for (at, rule) in rules.into_iter().enumerate() {
            let rule = Rule::compile(rule, mix(seed ^ at as u64)).map_err(|(field, value, problem)| {
                invalid(format!("rules[{at}].{field}"), value, &problem)
            })?;
            compiled.push(rule);
        }
        // Stable: of equally specific rules the first stays first.
        compiled.sort_by_key(|rule| {
            let conditions = rule.conditions.as_ref().map_or(0, Conditions::count);
            (std::cmp::Reverse(rule.prefix.len()), std::cmp::Reverse(conditions))
        });
        Ok(Self::Ordered(compiled.into()))
    }

    /// The compact form, for a rule that sends everything to one revision.
    fn simple(rule: &RouteRule) -> Option<Self> {
        let RouteAction::Split(splits) = &rule.action else { return None };
        let matches = &rule.matches;
        let plain = matches.path_prefix.bytes().all(|byte| byte == b'/')
            && matches.methods.is_empty()
            && matches.headers.is_empty()
            && matches.query.is_empty()
            && matches.cookies.is_empty()
            && rule.affinity == Affinity::None
            && rule.fallback.is_none()
            && !rule.placeholder;
        let sum: u64 = splits.iter().map(|split| u64::from(split.weight)).sum();
        let whole = splits.iter().find(|split| split.weight == 100).filter(|_| plain && sum == 100)?;
        let timeout_ms = u32::try_from(rule.timeout.as_millis()).ok().filter(|ms| *ms > 0)?;
        Some(Self::All { revision: whole.revision, tenant: rule.tenant, timeout_ms, wakes: rule.wakes })
    }

    /// Lets splits whose weights did not change go on where they are. For an entry that is in no table yet.
    pub(crate) fn continue_from(&mut self, before: &Self) {
        let (Self::Ordered(after), Self::Ordered(before)) = (self, before) else { return };
        for rule in Arc::get_mut(after).into_iter().flatten() {
            let same = before.iter().find(|old| old.matches == rule.matches);
            if let (Action::Deal(deal), Some(Rule { action: Action::Deal(old), .. })) =
                (&mut rule.action, same)
            {
                deal.continue_from(old);
            }
        }
    }

    /// What the first rule that matches says.
    pub(crate) fn route(&self, query: &RouteQuery<'_>, seed: u64) -> Result<Route, RouteError> {
        match self {
            Self::All { revision, tenant, timeout_ms, wakes } => {
                let mut target = RouteTarget::new(*revision, *tenant);
                target.timeout = Duration::from_millis(u64::from(*timeout_ms));
                target.wakes = *wakes;
                Ok(Route::To(target))
            }
            Self::Ordered(rules) => rules
                .iter()
                .find(|rule| rule.applies(query))
                .map_or(Err(RouteError::NoRoute), |rule| rule.decide(query, seed)),
        }
    }
}

impl Rule {
    fn compile(rule: RouteRule, seed: u64) -> Result<Self, (String, String, String)> {
        let bad =
            |field: &str, value: String, problem: &str| Err((field.to_owned(), value, problem.to_owned()));
        let prefix = rule.matches.path_prefix.trim_end_matches('/');
        if !prefix.is_empty() && !prefix.starts_with('/') {
            return bad("matches.path_prefix", prefix.to_owned(), "a path that begins with /");
        }
        if prefix.contains(['?', '#']) {
            return bad("matches.path_prefix", prefix.to_owned(), "a path without query and fragment");
        }
        if rule.timeout.is_zero() {
            return bad("timeout", "0s".into(), "longer than nothing");
        }
        let conditions = Conditions::compile(&rule.matches)
            .map_err(|(field, value, problem)| (field, value, problem.to_owned()))?;
        let affinity = match &rule.affinity {
            Affinity::Header(name) => match HeaderName::from_lowercase(name.as_bytes()) {
                Ok(name) => Key::Header(name),
                Err(_) => return bad("affinity.header", name.clone(), "a header name in lower case"),
            },
            Affinity::Cookie(name) if name.is_empty() => {
                return bad("affinity.cookie", String::new(), "the name of a cookie");
            }
            Affinity::Cookie(name) => Key::Cookie(name.as_str().into()),
            _ => Key::None,
        };
        let action = match &rule.action {
            RouteAction::Split(splits) if splits.is_empty() => Action::Disabled,
            RouteAction::Split(splits) => {
                let sum: u64 = splits.iter().map(|split| u64::from(split.weight)).sum();
                if sum != 100 {
                    return bad("action.split", sum.to_string(), "weights that add up to 100");
                }
                match splits.iter().find(|split| split.weight == 100) {
                    Some(whole) => Action::One(whole.revision),
                    None => Action::Deal(Deal::new(splits, seed)),
                }
            }
            RouteAction::Redirect { status, location } => {
                if ![301, 302, 307, 308].contains(status) {
                    return bad("action.redirect.status", status.to_string(), "301, 302, 307 or 308");
                }
                let sound = !location.is_empty() && location.bytes().all(|b| b.is_ascii_graphic());
                if !sound {
                    return bad(
                        "action.redirect.location",
                        location.clone(),
                        "a URL of visible ASCII characters",
                    );
                }
                let status = StatusCode::from_u16(*status).expect("one of four valid codes");
                Action::Redirect { status, location: location.as_str().into() }
            }
            RouteAction::Remote { peer } if peer.is_empty() => {
                return bad("action.remote.peer", String::new(), "the name of a host");
            }
            RouteAction::Remote { peer } => Action::Remote(peer.as_str().into()),
            _ => return bad("action", "?".into(), "an action that this version knows"),
        };
        Ok(Self {
            prefix: prefix.into(),
            conditions,
            action,
            tenant: rule.tenant,
            timeout: rule.timeout,
            affinity,
            wakes: rule.wakes,
            fallback: rule.fallback,
            placeholder: rule.placeholder,
            service: rule.service.as_deref().map(Arc::from),
            matches: rule.matches,
        })
    }

    fn applies(&self, query: &RouteQuery<'_>) -> bool {
        matching::under(&self.prefix, query.path)
            && self.conditions.as_ref().is_none_or(|conditions| conditions.matches(query))
    }

    fn decide(&self, query: &RouteQuery<'_>, seed: u64) -> Result<Route, RouteError> {
        let revision = match &self.action {
            Action::Disabled => return Err(RouteError::Disabled),
            Action::One(revision) => *revision,
            Action::Deal(deal) => deal.next(),
            Action::Redirect { status, location } => {
                let location =
                    location.replace("{path}", query.path).replace("{query}", query.query.unwrap_or(""));
                return Ok(Route::Redirect { status: *status, location });
            }
            Action::Remote(peer) => {
                let mut remote = RemoteTarget::new(Arc::clone(peer), self.tenant, self.timeout);
                remote.service.clone_from(&self.service);
                return Ok(Route::Remote(remote));
            }
        };
        let value = match &self.affinity {
            Key::None => None,
            Key::Header(name) => query.headers.get(name).map(http::HeaderValue::as_bytes),
            Key::Cookie(name) => matching::cookie(query.headers, name),
        };
        let mut target = RouteTarget::new(revision, self.tenant);
        target.affinity = value.filter(|value| !value.is_empty()).map(|value| hash(seed, value));
        target.timeout = self.timeout;
        target.wakes = self.wakes;
        target.fallback = self.fallback;
        target.placeholder = self.placeholder;
        Ok(Route::To(target))
    }
}
