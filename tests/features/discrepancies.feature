Feature: What does not fit between the systems
  Nobody can look into three systems at once. What they disagree about is said, until it is mended.

  Background:
    Given the item "lamp" from "Italy" at 80.00 with 5 in stock
    And a new customer places the order "lamp" for
      | item | price | quantity |
      | lamp | 80.00 | 1        |

  Scenario: An item that is still ordered is deleted
    Given the item "lamp" has no discrepancy "item_missing"
    When the item "lamp" is deleted
    Then the item "lamp" has a discrepancy "item_missing" with
      | order_lines | 1 |
    When the order "lamp" is cancelled
    Then the item "lamp" has no discrepancy "item_missing"

  Scenario: The warehouse counts less than nothing
    When the item "lamp" is restocked to -3
    Then the item "lamp" has a discrepancy "negative_stock" with
      | quantity_in_stock | -3 |
    When the item "lamp" is restocked to 3
    Then the item "lamp" has no discrepancy "negative_stock"

  Scenario: A payment comes before its order
    Given 160.00 is paid for an order "early" that sales has not written yet
    Then the last transaction has a discrepancy "payment_without_order" with
      | amount | 160.00 |
    When a new customer places the order "early" for
      | item | price | quantity |
      | lamp | 80.00 | 2        |
    Then the last transaction has no discrepancy "payment_without_order"

  Scenario: An order is overpaid, and the money goes back
    When 100.00 is paid for the order "lamp"
    Then the order "lamp" has a discrepancy "overpaid" with
      | total | 80.00  |
      | paid  | 100.00 |
    When -20.00 is added to the last transaction
    Then the order "lamp" has no discrepancy "overpaid"

  Scenario: An order was paid in part long ago
    When 30.00 is paid for the order "lamp"
    Then the order "lamp" has no discrepancy "part_paid_too_long"
    When the last transaction is dated 31 days back
    Then the order "lamp" has a discrepancy "part_paid_too_long" with
      | total | 80.00 |
      | paid  | 30.00 |
    When 50.00 is paid for the order "lamp"
    Then the order "lamp" has no discrepancy "part_paid_too_long"
