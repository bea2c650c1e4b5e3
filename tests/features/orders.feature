Feature: What was ordered
  Sales writes its own tables; the shop's people read orders, customers and products in one place.

  Background:
    Given the item "teapot" from "Japan" at 12.50 with 40 in stock
    And the item "cup" from "Portugal" at 3.20 with 500 in stock

  Scenario: An order is placed
    When a new customer places the order "first" for
      | item   | price | quantity |
      | teapot | 12.50 | 2        |
      | cup    | 3.00  | 6        |
    Then the order "first" shows
      | total          | 43.00  |
      | paid           | 0.00   |
      | balance        | 43.00  |
      | payment_status | unpaid |
    And the order "first" has the lines
      | item   | price | quantity | amount |
      | teapot | 12.50 | 2        | 25.00  |
      | cup    | 3.00  | 6        | 18.00  |
    And the customer shows
      | order_count | 1     |
      | ordered     | 43.00 |
      | balance     | 43.00 |
    And the product "teapot" shows
      | units_sold        | 2      |
      | revenue           | 25.00  |
      | price             | 12.50  |
      | quantity_in_stock | 40     |
      | status            | listed |

  Scenario: An order is cancelled
    Given a new customer places the order "kept" for
      | item | price | quantity |
      | cup  | 3.20  | 10       |
    And the customer places the order "cancelled" for
      | item   | price | quantity |
      | teapot | 12.50 | 1        |
      | cup    | 3.20  | 2        |
    When the order "cancelled" is cancelled
    Then there is no order "cancelled"
    And the customer shows
      | order_count | 1     |
      | ordered     | 32.00 |
    And the product "teapot" shows
      | units_sold | 0    |
      | revenue    | 0.00 |

  Scenario: A customer's only order is cancelled
    Given a new customer places the order "only" for
      | item | price | quantity |
      | cup  | 3.20  | 1        |
    And the customer shows
      | order_count | 1 |
    When the order "only" is cancelled
    Then there is no such customer

  Scenario: An order has no lines yet
    When a new customer places the order "empty" for nothing
    Then the order "empty" shows
      | total          | 0.00 |
      | lines          | []   |
      | transactions   | []   |
      | payment_status | paid |
    And the customer shows
      | order_count | 1    |
      | ordered     | 0.00 |

  Scenario: A line is moved to another order of the same customer
    Given a new customer places the order "from" for
      | item   | price | quantity |
      | teapot | 12.50 | 2        |
      | cup    | 3.20  | 5        |
    And the customer places the order "to" for nothing
    When the line of "teapot" is moved from the order "from" to the order "to"
    Then the order "from" shows
      | total | 16.00 |
    And the order "to" shows
      | total | 25.00 |
    And the customer shows
      | order_count | 2     |
      | ordered     | 41.00 |

  Scenario: A mistake in an order is corrected
    Given a new customer places the order "wrong" for
      | item   | price | quantity |
      | teapot | 12.50 | 20       |
    When the line of "teapot" in the order "wrong" is corrected to 2 at 11.00
    Then the order "wrong" shows
      | total | 22.00 |
    And the product "teapot" shows
      | units_sold | 2     |
      | revenue    | 22.00 |
    And the customer shows
      | ordered | 22.00 |

  Scenario: All of a customer's orders count, also those handed over to somebody else
    Given a new customer places the order "one" for
      | item | price | quantity |
      | cup  | 3.20  | 1        |
    And the customer places the order "two" for
      | item | price | quantity |
      | cup  | 3.00  | 2        |
    And 3.20 is paid for the order "one"
    And the customer shows
      | order_count | 2    |
      | ordered     | 9.20 |
      | paid        | 3.20 |
      | balance     | 6.00 |
    When the order "one" is handed over to a new customer
    Then the customer shows
      | order_count | 1    |
      | ordered     | 3.20 |
      | paid        | 3.20 |
      | balance     | 0.00 |
    And the customer of the order "two" shows
      | order_count | 1    |
      | ordered     | 6.00 |
      | paid        | 0.00 |
