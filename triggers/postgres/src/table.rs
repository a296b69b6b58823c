//! The statements on one outbox table.

/// A table's name, with its schema where one is given, as it stands in statements.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    quoted: String,
    /// The name without the schema.
    pub(crate) name: String,
}

fn is_identifier(part: &str) -> bool {
    !part.is_empty() && part.len() <= 63 && !part.contains(['"', '\0'])
}

/// An identifier in quotation marks: what stands between them is taken as it is.
pub(crate) fn quoted(identifier: &str) -> String {
    format!("\"{identifier}\"")
}

impl Table {
    /// `name` or `schema.name`; `None`: it is neither.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (schema, name) = match text.split_once('.') {
            Some((schema, name)) => (Some(schema), name),
            None => (None, text),
        };
        let wrong =
            !is_identifier(name) || name.contains('.') || schema.is_some_and(|part| !is_identifier(part));
        (!wrong).then(|| Self {
            quoted: schema.map(|schema| quoted(schema) + ".").unwrap_or_default() + &quoted(name),
            name: name.to_owned(),
        })
    }

    /// Leases up to `$1` rows for `$2` milliseconds: the oldest that nobody has, of each key the oldest only. Rows that
    /// another host locks in this moment are passed over.
    pub(crate) fn claim(&self) -> String {
        let table = &self.quoted;
        format!(
            "WITH next AS (
                SELECT o.id FROM {table} o
                WHERE o.delivered_at IS NULL
                  AND (o.leased_until IS NULL OR o.leased_until < now())
                  AND (o.key IS NULL OR NOT EXISTS (
                      SELECT FROM {table} e WHERE e.key = o.key AND e.id < o.id AND e.delivered_at IS NULL))
                ORDER BY o.id LIMIT $1 FOR UPDATE OF o SKIP LOCKED
            )
            UPDATE {table} t
            SET leased_until = now() + $2::float8 * interval '1 millisecond', deliveries = t.deliveries + 1
            FROM next WHERE t.id = next.id
            RETURNING t.id::int8, t.key::text, t.event::text, t.deliveries::int4,
                      (extract(epoch FROM t.created_at) * 1000)::int8"
        )
    }

    /// Keeps the lease of row `$1` for another `$2` milliseconds.
    pub(crate) fn renew(&self) -> String {
        format!(
            "UPDATE {} SET leased_until = now() + $2::float8 * interval '1 millisecond' WHERE id = $1::int8",
            self.quoted
        )
    }

    /// Gives the lease of row `$1` up.
    pub(crate) fn release(&self) -> String {
        format!("UPDATE {} SET leased_until = NULL WHERE id = $1::int8", self.quoted)
    }

    /// Row `$1` was delivered: it is deleted, or marked.
    pub(crate) fn done(&self, mark: bool) -> String {
        let table = &self.quoted;
        if mark {
            format!("UPDATE {table} SET delivered_at = now(), leased_until = NULL WHERE id = $1::int8")
        } else {
            format!("DELETE FROM {table} WHERE id = $1::int8")
        }
    }

    /// A row with the key `$1` and the event `$2`.
    pub(crate) fn insert(&self) -> String {
        format!("INSERT INTO {} (key, event) VALUES ($1::text, $2::text::jsonb)", self.quoted)
    }

    /// How many rows were not delivered.
    pub(crate) fn count(&self) -> String {
        format!("SELECT count(*) FROM {} WHERE delivered_at IS NULL", self.quoted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_and_what_could_end_the_quotation_is_refused() {
        let quoted = |text| Table::parse(text).map(|table| table.quoted);
        assert_eq!(quoted("outbox").as_deref(), Some(r#""outbox""#));
        assert_eq!(quoted("shop.Out box").as_deref(), Some(r#""shop"."Out box""#));
        for wrong in ["", ".", "a.", ".a", "a.b.c", "a\"; DROP TABLE b; --", "a\0"] {
            assert_eq!(quoted(wrong), None, "{wrong}");
        }
    }
}
