@serial
Feature: A source is down
  One dead source delays only its own data, and the status says so.

  Scenario: Accounting stops, sales goes on, accounting catches up
    Given the item "desk" from "Norway" at 400.00 with 4 in stock
    And a new customer places the order "desk" for
      | item | price  | quantity |
      | desk | 400.00 | 1        |
    And 100.00 is paid for the order "desk"
    And the order "desk" shows
      | paid | 100.00 |
    When the database of accounting stops
    Then the status of accounting soon says that it is not current
    And the status of sales says that it is current
    When the customer places the order "meanwhile" for
      | item | price  | quantity |
      | desk | 390.00 | 2        |
    Then the order "meanwhile" shows
      | total | 780.00 |
    And the order "desk" shows
      | paid | 100.00 |
    When the database of accounting starts again
    And 300.00 is paid for the order "desk"
    Then the order "desk" shows
      | paid           | 400.00 |
      | payment_status | paid   |
    And the status of accounting soon says that it is current
