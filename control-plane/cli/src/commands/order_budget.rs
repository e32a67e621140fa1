//! What of the CAs' limits is a tenant's, as options and as text.

use portico_api::v1::OrderBudget;
use serde_json::{Map, Value, json};

use super::tenant_limits::{Limit, at, parse};

/// New orders at each issuer, for names that have no certificate yet; `default` takes one back.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct OrderBudgetArgs {
    /// New orders in an hour at each issuer, instead of `tenant_1h` of its limits; 0: as many as the CA lets through
    #[arg(long, value_name = "N|default", value_parser = parse)]
    orders_per_hour: Option<Limit>,
    /// New orders in a day at each issuer, instead of `tenant_24h`; 0: as many as the CA lets through
    #[arg(long, value_name = "N|default", value_parser = parse)]
    orders_per_day: Option<Limit>,
    /// Its new names may use what `priority_reserve` of the issuers' limits keeps from others
    #[arg(long, value_name = "true|false")]
    order_priority: Option<bool>,
}

impl OrderBudgetArgs {
    /// As a merge patch (RFC 7396) of the budget; `None`: nothing is said.
    pub(crate) fn patch(&self) -> Option<Value> {
        let limit = |limit| match limit {
            Limit::Default => Value::Null,
            Limit::At(number) => json!(number),
        };
        let fields = [
            ("per_hour", self.orders_per_hour.map(limit)),
            ("per_day", self.orders_per_day.map(limit)),
            ("priority", self.order_priority.map(Value::from)),
        ];
        let said = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let patch: Map<String, Value> = said.collect();
        (!patch.is_empty()).then_some(Value::Object(patch))
    }

    /// For a tenant that is new.
    pub(crate) fn budget(&self) -> OrderBudget {
        let small = |limit| at(limit).map(|number| u32::try_from(number).unwrap_or(u32::MAX));
        OrderBudget {
            per_hour: small(self.orders_per_hour),
            per_day: small(self.orders_per_day),
            priority: self.order_priority.unwrap_or_default(),
        }
    }
}

/// One line; `None`: the tenant is like all others.
pub(crate) fn text(budget: &OrderBudget) -> Option<String> {
    let count = |number: u32, time: &str| match number {
        0 => format!("any number of new ones {time}"),
        number => format!("{number} new ones {time}"),
    };
    let parts = [
        budget.per_hour.map(|number| count(number, "an hour")),
        budget.per_day.map(|number| count(number, "a day")),
        budget.priority.then(|| "with priority".to_owned()),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_patched_and_default_takes_back() {
        assert_eq!(OrderBudgetArgs::default().patch(), None);
        let args = OrderBudgetArgs {
            orders_per_hour: parse("0").ok(),
            orders_per_day: parse("default").ok(),
            order_priority: Some(true),
        };
        assert_eq!(args.patch(), Some(json!({ "per_hour": 0, "per_day": null, "priority": true })));
        let budget = args.budget();
        assert_eq!(text(&budget).as_deref(), Some("any number of new ones an hour, with priority"));
        assert_eq!(text(&OrderBudget::default()), None);
    }
}
