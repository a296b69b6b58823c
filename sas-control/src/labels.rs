//! Labels, and what selects by them.

use std::collections::BTreeMap;

use sas_core::Result;
use sas_knative::keys::own;

use crate::invalid::invalid;

/// The label that names the app which a service belongs to: a group of services of one namespace.
pub const APP_LABEL: &str = own::APP;

/// Selects by labels, as Kubernetes does: `app=shop,tier!=web,env in (test, live),zone notin (a),canary,!old`. All parts
/// must hold; one without parts selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    /// Also where there is no such label.
    NotIn(String, Vec<String>),
    Has(String),
    HasNot(String),
}

const SELECTOR: &str = "must be like app=shop,tier!=web,env in (test, live),zone notin (a),canary,!old";

impl LabelSelector {
    /// Those with this label.
    pub fn label(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self(vec![Requirement::In(name.into(), vec![value.into()])])
    }

    /// Those of an app.
    pub fn app(app: impl Into<String>) -> Self {
        Self::label(APP_LABEL, app)
    }

    /// Reads a selector.
    ///
    /// # Errors
    /// `InvalidSpec` with the field `labels` and the part that is none.
    pub fn parse(text: &str) -> Result<Self> {
        let mut requirements = Vec::new();
        for part in parts(text).map(str::trim).filter(|part| !part.is_empty()) {
            requirements.push(requirement(part).ok_or_else(|| invalid("select", "labels", part, SELECTOR))?);
        }
        Ok(Self(requirements))
    }

    /// Whether it selects what has these labels.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let one_of =
            |key: &str, values: &[String]| labels.get(key).is_some_and(|value| values.contains(value));
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => one_of(key, values),
            Requirement::NotIn(key, values) => !one_of(key, values),
            Requirement::Has(key) => labels.contains_key(key),
            Requirement::HasNot(key) => !labels.contains_key(key),
        })
    }
}

/// Splits at the commas that stand in no brackets.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.split(move |c| {
        inside = (inside || c == '(') && c != ')';
        c == ',' && !inside
    })
}

fn requirement(part: &str) -> Option<Requirement> {
    let one = |value: &str| vec![value.trim().to_owned()];
    let (key, found) = if let Some(list) = part.strip_suffix(')') {
        let (head, values) = list.split_once('(')?;
        let values: Vec<String> = values.split(',').map(|value| value.trim().to_owned()).collect();
        let (key, word) = head.trim().rsplit_once(char::is_whitespace)?;
        if values.iter().any(|value| !is_value(value)) {
            return None;
        }
        match word {
            "in" => (key, Requirement::In(key.trim().to_owned(), values)),
            "notin" => (key, Requirement::NotIn(key.trim().to_owned(), values)),
            _ => return None,
        }
    } else if let Some((key, value)) = part.split_once("!=") {
        is_value(value.trim()).then_some(())?;
        (key, Requirement::NotIn(key.trim().to_owned(), one(value)))
    } else if let Some((key, value)) = part.split_once('=') {
        let value = value.strip_prefix('=').unwrap_or(value);
        is_value(value.trim()).then_some(())?;
        (key, Requirement::In(key.trim().to_owned(), one(value)))
    } else if let Some(key) = part.strip_prefix('!') {
        (key, Requirement::HasNot(key.trim().to_owned()))
    } else {
        (part, Requirement::Has(part.to_owned()))
    };
    let key = key.trim();
    let good = !key.is_empty() && !key.contains(|c: char| c.is_whitespace() || "=!(),".contains(c));
    good.then_some(found)
}

fn is_value(value: &str) -> bool {
    !value.contains(|c: char| c.is_whitespace() || "=!(),".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_selected_as_kubernetes_does() {
        let labels = [("app", "shop"), ("tier", "web")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        for (text, matches) in [
            ("", true),
            ("app=shop", true),
            ("app==shop,tier=web", true),
            ("app=bank", false),
            ("app!=bank", true),
            ("other!=x", true),
            ("tier!=web", false),
            ("app", true),
            ("canary", false),
            ("!canary,app", true),
            ("!app", false),
            ("app in (bank, shop)", true),
            ("app in (bank),tier", false),
            ("app notin (bank,post),tier=web", true),
            ("app notin (shop)", false),
            ("other notin (shop)", true),
            ("other in (shop)", false),
            ("other in ()", false),
        ] {
            let selector = LabelSelector::parse(text).expect(text);
            assert_eq!(selector.matches(&labels), matches, "{text}");
        }
        for wrong in
            ["=x", "!", "a within (b)", "!=x", "in (a)", "a in (b", "a in b)", "a b", "a=(b)", "a in (b c)"]
        {
            let error = LabelSelector::parse(wrong).expect_err(wrong);
            assert_eq!(error.fields().unwrap().0[0].field, "labels", "{wrong}");
        }
    }
}
