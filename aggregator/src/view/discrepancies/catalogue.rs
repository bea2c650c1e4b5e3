//! The rules: what does not fit between the systems, one sentence and one SELECT each.

/// A rule, and where its discrepancies come from.
#[derive(Debug)]
pub struct Rule {
    /// The last two digits of its discrepancies' ids. Never used for another rule.
    pub number: i64,
    pub name: &'static str,
    /// What is wrong, in one sentence.
    pub sentence: &'static str,
    /// The systems that do not fit. While one of them has not been read, nothing is claimed.
    pub systems: &'static [&'static str],
    /// The unified table whose rows it judges.
    pub resource: &'static str,
    /// A unified table of whose rows it asks whether they are there, and the column of `resource` that
    /// names them: where one comes or goes, the rows that name it are judged, too.
    pub looks_for: Option<(&'static str, &'static str)>,
    /// The rows that break it: `key`, `detail` (jsonb, small), `due` (of a rule of time: when it
    /// was broken; else null). A function of the unified rows of `key`'s, found by index; rows that
    /// an input in quarantine belongs to are left out. `{payments_known_until}` stands for the time
    /// that a rule of time compares with.
    pub broken: &'static str,
}

/// The unified tables whose touched rows are judged.
pub(super) const JUDGED: [&str; 3] = ["products", "transactions", "orders"];

/// Those that tell which of their rows came or went.
pub(super) const LOOKED_FOR: [&str; 1] = ["orders"];

/// Every rule.
pub static RULES: [Rule; 5] = [
    Rule {
        number: 1,
        name: "item_missing",
        sentence: "An order line names an item that the warehouse does not have.",
        systems: &["sales", "warehouse"],
        resource: "products",
        looks_for: None,
        broken: "
            SELECT p.id AS key, jsonb_build_object('order_lines', s.line_count) AS detail,
                NULL::timestamptz AS due
            FROM public.products AS p
            JOIN aggregator.product_totals AS s ON s.product_id = p.id
            WHERE p.status = 'delisted' AND NOT p.degraded",
    },
    Rule {
        number: 2,
        name: "payment_without_order",
        sentence: "A payment names an order that sales does not have.",
        systems: &["accounting", "sales"],
        resource: "transactions",
        looks_for: Some(("orders", "order_id")),
        broken: "
            SELECT x.id AS key,
                jsonb_build_object('order_id', x.order_id, 'amount', x.amount::text) AS detail,
                NULL::timestamptz AS due
            FROM public.transactions AS x
            WHERE NOT x.degraded
                AND NOT EXISTS (SELECT FROM public.orders AS o WHERE o.id = x.order_id OFFSET 0)
                AND NOT EXISTS (
                    SELECT FROM aggregator.degraded AS g
                    WHERE g.resource = 'orders' AND g.id = x.order_id OFFSET 0
                )",
    },
    Rule {
        number: 3,
        name: "part_paid_too_long",
        sentence: "An order has been paid in part for longer than it may be.",
        systems: &["accounting", "sales"],
        resource: "orders",
        looks_for: None,
        broken: "
            SELECT o.id AS key,
                jsonb_build_object('total', o.total::text, 'paid', o.paid::text,
                    'part_paid_since', aggregator.iso_time(w.since)) AS detail,
                w.due
            FROM aggregator.part_paid AS w
            JOIN public.orders AS o ON o.id = w.order_id
            WHERE w.due <= ({payments_known_until}) AND NOT o.degraded",
    },
    Rule {
        number: 4,
        name: "overpaid",
        sentence: "More has been paid for an order than it costs.",
        systems: &["accounting", "sales"],
        resource: "orders",
        looks_for: None,
        broken: "
            SELECT o.id AS key,
                jsonb_build_object('total', o.total::text, 'paid', o.paid::text) AS detail,
                NULL::timestamptz AS due
            FROM public.orders AS o
            WHERE o.payment_status = 'overpaid' AND NOT o.degraded",
    },
    Rule {
        number: 5,
        name: "negative_stock",
        sentence: "The warehouse counts less than nothing of an item.",
        systems: &["warehouse"],
        resource: "products",
        looks_for: None,
        broken: "
            SELECT p.id AS key,
                jsonb_build_object('quantity_in_stock', p.quantity_in_stock) AS detail,
                NULL::timestamptz AS due
            FROM public.products AS p
            WHERE p.quantity_in_stock < 0 AND p.status = 'listed' AND NOT p.degraded",
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::unified;

    /// Nothing else tells what of a rule's resource a view transaction touched.
    #[test]
    fn what_a_rule_depends_on_is_judged_when_it_is_touched() {
        for rule in &RULES {
            assert!(JUDGED.contains(&rule.resource), "{rule:?}");
            if let Some((name, column)) = rule.looks_for {
                assert!(LOOKED_FOR.contains(&name), "{rule:?}");
                let resource = unified::named(rule.resource);
                let columns = resource.map_or(&[][..], |resource| resource.columns);
                assert!(columns.iter().any(|of| of.name == column), "{rule:?}");
            }
        }
        for name in JUDGED.iter().chain(&LOOKED_FOR) {
            let rows = unified::named(name).and_then(|resource| resource.rows());
            assert!(rows.is_some(), "{name} has no rows that a change touches");
        }
    }
}
