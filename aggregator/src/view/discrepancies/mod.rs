//! `public.discrepancies`: what does not fit between the systems. Open ones only.
//!
//! A view transaction judges what it touched once, when it commits: what breaks a rule between two
//! of its steps was never there. It is judged by the unified rows and the positions as the view
//! transaction leaves them; so a discrepancy is a function of mirrors and positions, but for
//! `since`, which says at which position it was there first (a rule of time: when it was due).

mod catalogue;
pub(super) mod judge;
pub(crate) mod part_paid;

use std::fmt::Write;
use std::sync::LazyLock;

use service::fault;

pub use catalogue::{RULES, Rule};
use part_paid::PART_PAID;

use super::resource::{Column, Kept, Known, Resource, Rows};

/// The discrepancies' own arithmetic: `id = key * 100 + number`. A row with a key beyond this is not
/// judged, rather than that an id overflows.
const KEY_MAX: i64 = 90_000_000_000_000_000;

static COLUMNS: [Column; 6] = [
    Column::new("rule", "text", None),
    Column::new("systems", "text[]", None),
    Column::new("resource", "text", None),
    Column::new("key", "bigint", None),
    Column::new("since", "timestamptz", None),
    Column::new("detail", "jsonb", None),
];

pub(crate) static DISCREPANCIES: LazyLock<Resource> = LazyLock::new(|| Resource {
    table: "public.discrepancies",
    key: &[("id", "bigint")],
    columns: &COLUMNS,
    kept: Kept::Rows(Rows {
        named_by: &[],
        through: &[],
        touched: touched().leak(),
        all: all().leak(),
        computed: computed().leak(),
    }),
});

/// Whether every system of the rule is known, as a condition.
fn is_known(rule: &Rule) -> String {
    if !fault::in_force("claims_of_known_sources") {
        return "true".to_owned();
    }
    let systems = rule.systems.iter().map(|system| format!("{{{system}}}"));
    systems.collect::<Vec<_>>().join(" AND ")
}

fn broken(rule: &Rule) -> String {
    rule.broken
        .replace("{payments_known_until}", part_paid::KNOWN_UNTIL)
}

/// The row of each id, by the rule that the id names. `OFFSET 0` keeps the planner from joining what
/// is to be looked up by key.
fn computed() -> String {
    let rules = RULES.iter().map(|rule| {
        let systems = rule.systems.iter().map(|system| format!("'{system}'"));
        format!(
            "SELECT t.id, b.key IS NOT NULL AS present, '{name}' AS rule,
                ARRAY[{systems}] AS systems, '{resource}' AS resource, t.key,
                CASE WHEN b.key IS NOT NULL THEN coalesce(b.due, (
                    SELECT d.since FROM public.discrepancies AS d WHERE d.id = t.id
                ), (
                    SELECT max(coalesce(p.committed_at, p.current_at, p.applied_at))
                    FROM public.positions AS p
                    WHERE p.source = ANY(ARRAY[{systems}]) AND p.epoch IS NOT NULL
                )) END AS since,
                b.detail, false AS degraded
            FROM (
                SELECT id, (id - {number}) / 100 AS key FROM touched
                WHERE (id - {number}) % 100 = 0
            ) AS t
            LEFT JOIN LATERAL (
                SELECT * FROM ({broken}) AS b WHERE b.key = t.key AND {is_known} OFFSET 0
            ) AS b ON true",
            name = rule.name,
            systems = systems.collect::<Vec<_>>().join(", "),
            resource = rule.resource,
            number = rule.number,
            broken = broken(rule),
            is_known = is_known(rule),
        )
    });
    rules.collect::<Vec<_>>().join("\nUNION ALL\n")
}

/// Every id that has a row or should have one.
fn all() -> String {
    let mut all = "SELECT id FROM public.discrepancies".to_owned();
    for rule in &RULES {
        let _ = write!(
            all,
            "\nUNION SELECT b.key * 100 + {} FROM ({}) AS b WHERE b.key BETWEEN -{KEY_MAX} AND {KEY_MAX}",
            rule.number,
            broken(rule),
        );
    }
    all
}

/// The orders that a view transaction touched: those of one parameter, those of the transactions
/// of the other, and what was put aside. That `revision` is looked at keeps the planner from reading
/// an index from end to end.
fn orders_touched(orders: &str, transactions: &str) -> String {
    format!(
        "SELECT unnest({orders}::bigint[]) AS id
        UNION SELECT id FROM aggregator.judged_later WHERE resource = 'orders'
        UNION SELECT x.order_id FROM (
            SELECT unnest({transactions}::bigint[]) AS id
            UNION SELECT id FROM aggregator.judged_later WHERE resource = 'transactions'
        ) AS t CROSS JOIN LATERAL (
            SELECT x.order_id FROM public.transactions AS x
            WHERE x.id = t.id AND x.revision IS NOT NULL OFFSET 0
        ) AS x WHERE x.order_id IS NOT NULL"
    )
}

/// The ids that products (`$2`), transactions (`$3`) and orders (`$4`) decide.
fn touched() -> String {
    // Not the design: as if an order were no concern of its payments.
    let of_orders = if fault::in_force("payments_of_touched_orders") {
        "UNION SELECT x.id FROM touched_orders AS o
            CROSS JOIN LATERAL (
                SELECT x.id FROM public.transactions AS x WHERE x.order_id = o.id OFFSET 0
            ) AS x"
    } else {
        ""
    };
    let numbers = |resource: &str| -> String {
        let rules = RULES.iter().filter(|rule| rule.resource == resource);
        let numbers: Vec<_> = rules.map(|rule| rule.number.to_string()).collect();
        format!(
            "unnest('{{{}}}'::bigint[]) AS n (number)",
            numbers.join(",")
        )
    };
    format!(
        "WITH touched_orders AS ({touched_orders}),
        touched_rows AS (
            SELECT e.id, n.number FROM touched_orders AS e CROSS JOIN {orders}
            UNION ALL
            SELECT e.id, n.number FROM (
                SELECT unnest($3::bigint[]) AS id
                UNION SELECT id FROM aggregator.judged_later WHERE resource = 'transactions'
                {of_orders}
            ) AS e CROSS JOIN {transactions}
            UNION ALL
            SELECT e.id, n.number FROM (
                SELECT unnest($2::bigint[]) AS id
                UNION SELECT id FROM aggregator.judged_later WHERE resource = 'products'
            ) AS e CROSS JOIN {products}
        )
        SELECT id * 100 + number AS id FROM touched_rows
        WHERE id BETWEEN -{KEY_MAX} AND {KEY_MAX}",
        touched_orders = orders_touched("$4", "$3"),
        orders = numbers("orders"),
        transactions = numbers("transactions"),
        products = numbers("products"),
    )
}

/// The statements for touched rows: what is due (orders, transactions), what breaks a rule
/// (revision, products, transactions, orders). The second returns by rule how many discrepancies
/// there are more then, or fewer.
pub(super) fn touched_sql(known: &Known) -> [String; 2] {
    let merge = DISCREPANCIES.touched_sql(known, &[]);
    [
        PART_PAID.touched_sql(known, &[]),
        format!(
            "WITH changed AS (
                {merge}
                RETURNING merge_action() AS action, coalesce(old.rule, new.rule) AS rule
            )
            SELECT rule, count(*) FILTER (WHERE action = 'INSERT')
                - count(*) FILTER (WHERE action = 'DELETE')
            FROM changed GROUP BY rule"
        ),
    ]
}

/// Compared with what they should be, like the unified tables.
pub(crate) fn compared() -> [&'static Resource; 2] {
    [&PART_PAID, &DISCREPANCIES]
}
