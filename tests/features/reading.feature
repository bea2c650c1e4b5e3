Feature: How the answers can be trusted
  Whoever has written knows where, and may ask for an answer that is not older.

  Background:
    Given the item "chair" from "Denmark" at 150.00 with 20 in stock

  Scenario: A writer reads its own writes, each time
    Given a new customer places the order "chairs" for
      | item  | price  | quantity |
      | chair | 150.00 | 1        |
    Then 25 corrections of the order "chairs", each read back at its position, all show

  Scenario: A position that is not reached in time
    When the product "chair" is asked for at a position far in the future
    Then the answer is 503 with a code
    And it came before the time was up twice

  Scenario: What is not there is said in words
    When the order 999999999999 is asked for
    Then the answer is 404 with a code

  Scenario: A page turned while orders come in misses none and repeats none
    Given a new customer places 9 orders for 1 of "chair"
    When the orders are walked 2 at a time while new ones are placed
    Then each of the customer's 9 orders is met once

  Scenario: A cursor belongs to its list
    Given a new customer places 3 orders for 1 of "chair"
    When a cursor of the orders is used for the products
    Then the answer is 400 with a code

  Scenario: What sells most stands first
    Given the item "stool" from "Denmark" at 45.00 with 20 in stock
    And a new customer places the order "stools" for
      | item  | price  | quantity  |
      | stool | 45.00  | 200000000 |
      | chair | 150.00 | 100000000 |
    Then "stool" comes before "chair" among the sold items

  Scenario: Every answer says where it stands
    When the product "chair" is asked for
    Then the answer stands at a position of every source
