Feature: What was paid
  Accounting knows order numbers and nothing else of an order. Its payments come early, late,
  twice, or for orders that never were.

  Background:
    Given the item "lamp" from "Italy" at 80.00 with 5 in stock

  Scenario: An order is paid in two parts
    Given a new customer places the order "lamp" for
      | item | price | quantity |
      | lamp | 80.00 | 1        |
    When 30.00 is paid for the order "lamp"
    Then the order "lamp" shows
      | paid           | 30.00     |
      | balance        | 50.00     |
      | payment_status | part_paid |
    When 50.00 is paid for the order "lamp"
    Then the order "lamp" shows
      | paid           | 80.00 |
      | balance        | 0.00  |
      | payment_status | paid  |
    And the customer shows
      | paid    | 80.00 |
      | balance | 0.00  |

  Scenario: An order is overpaid, and the money goes back
    Given a new customer places the order "lamp" for
      | item | price | quantity |
      | lamp | 80.00 | 1        |
    When 100.00 is paid for the order "lamp"
    Then the order "lamp" shows
      | balance        | -20.00   |
      | payment_status | overpaid |
    When -20.00 is added to the last transaction
    Then the order "lamp" shows
      | paid           | 80.00 |
      | balance        | 0.00  |
      | payment_status | paid  |
    And the last transaction shows
      | amount | 80.00 |

  Scenario: A payment comes before its order
    Given 160.00 is paid for an order "early" that sales has not written yet
    And there is no order "early"
    And the last transaction shows
      | amount | 160.00 |
    When a new customer places the order "early" for
      | item | price | quantity |
      | lamp | 80.00 | 2        |
    Then the order "early" shows
      | total          | 160.00 |
      | paid           | 160.00 |
      | payment_status | paid   |
    And the customer shows
      | paid    | 160.00 |
      | balance | 0.00   |

  Scenario: A payment for an order that never was
    When 12.34 is paid for an order "never" that sales has not written yet
    Then the last transaction shows
      | amount | 12.34 |
    And the last transaction names the order "never"
    And there is no order "never"

  Scenario: A payment is booked to the wrong order and moved
    Given a new customer places the order "mine" for
      | item | price | quantity |
      | lamp | 80.00 | 1        |
    And another customer places the order "theirs" for
      | item | price | quantity |
      | lamp | 75.00 | 1        |
    And 80.00 is paid for the order "theirs"
    And the order "theirs" shows
      | payment_status | overpaid |
    When the last transaction is moved to the order "mine"
    Then the order "mine" shows
      | payment_status | paid |
    And the order "theirs" shows
      | paid           | 0.00   |
      | payment_status | unpaid |

  Scenario: A payment is taken back
    Given a new customer places the order "lamp" for
      | item | price | quantity |
      | lamp | 80.00 | 1        |
    And 80.00 is paid for the order "lamp"
    And the order "lamp" shows
      | payment_status | paid |
    When the last transaction is deleted
    Then the order "lamp" shows
      | paid           | 0.00   |
      | payment_status | unpaid |
      | transactions   | []     |
    And there is no such transaction
