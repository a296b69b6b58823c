//! What a tenant may use, shown and changed.

use serde_json::{Map, Value, json};

use crate::{
    Failed,
    client::Client,
    deploy::percent,
    words::{cell, table},
};

/// Shows what a tenant may use and what it uses; with changes (`FIELD=AMOUNT`, or `FIELD-` for no limit) makes them first.
pub(crate) async fn quota(
    client: &Client,
    namespace: &str,
    changes: &[String],
    clear: bool,
) -> Result<(Value, String), Failed> {
    let path = format!("/v1/quotas/{}", percent(namespace));
    if clear {
        client.send("DELETE", &path, &[], Default::default()).await?.json()?;
    } else if !changes.is_empty() {
        let mut quota = match &client.get(&path).await?["quota"] {
            Value::Object(own) => own.clone(),
            _ => Map::new(),
        };
        for change in changes {
            let (field, amount) = parse(change)?;
            match amount {
                Some(amount) => drop(quota.insert(field, amount)),
                None => drop(quota.remove(&field)),
            }
        }
        client.send("PUT", &path, &[], Value::Object(quota).to_string().into()).await?.json()?;
    }
    let tenant = client.get(&format!("/v1/tenants/{}", percent(namespace))).await?;
    let rows: Vec<Vec<String>> = tenant["usage"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| ["field", "used", "most", "limit", "refused"].map(|name| cell(&one[name])).to_vec())
        .collect();
    let text = match (rows.is_empty(), tenant["quota"].is_null()) {
        (true, _) => format!("{namespace} may use what there is"),
        (false, own) => {
            let whose = if own { "what all tenants may" } else { "its own quota" };
            format!("{namespace}: {whose}\n{}", table(&["FIELD", "USED", "MOST", "LIMIT", "REFUSED"], &rows))
        }
    };
    Ok((tenant, text))
}

/// `memoryBytes=512Mi` is a field and its amount, `memoryBytes-` a field that goes.
fn parse(change: &str) -> Result<(String, Option<Value>), Failed> {
    if let Some(field) = change.strip_suffix('-').filter(|field| !field.contains('=')) {
        return Ok((field.to_owned(), None));
    }
    let wrong = || {
        Failed(format!(
            "{change}: write FIELD=AMOUNT, such as instances=10 or memoryBytes=512Mi; FIELD- for no limit"
        ))
    };
    let (field, amount) = change.split_once('=').ok_or_else(wrong)?;
    // A plain number may be a rate, such as 0.5: only an amount with a unit is rounded to whole ones.
    let number = match (amount.parse::<u64>(), amount.parse::<f64>()) {
        (Ok(whole), _) => json!(whole),
        (_, Ok(number)) => json!(Some(number).filter(|number| number.is_finite()).ok_or_else(wrong)?),
        _ => json!(sas::knative::parse_quantity(amount, 1).ok_or_else(wrong)?),
    };
    Ok((field.to_owned(), Some(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_units_and_what_is_no_amount_is_refused() {
        for (text, field, amount) in [
            ("instances=10", "instances", Some(json!(10))),
            ("memoryBytes=512Mi", "memoryBytes", Some(json!(512_u64 << 20))),
            ("storageBytes=2G", "storageBytes", Some(json!(2_000_000_000_u64))),
            ("rate=0.5", "rate", Some(json!(0.5))),
            ("rate-", "rate", None),
        ] {
            assert_eq!(parse(text).expect(text), (field.to_owned(), amount), "{text}");
        }
        for text in
            ["instances", "instances=", "instances=ten", "memoryBytes=99999999999Ti", "rate=inf", "a=b-"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
