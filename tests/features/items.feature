Feature: What the warehouse has
  An item, its price and its quantity are three commits; items go while they are still ordered.

  Scenario: An item is renamed and then deleted while it is ordered
    Given the item "vase" from "Spain" at 20.00 with 3 in stock
    And a new customer places the order "vases" for
      | item | price | quantity |
      | vase | 19.00 | 2        |
    When the item "vase" is renamed to "amphora"
    Then the product "vase" shows
      | name | amphora |
    When the item "vase" is deleted
    Then the product "vase" shows
      | name              | null     |
      | description       | null     |
      | price             | null     |
      | quantity_in_stock | null     |
      | units_sold        | 2        |
      | revenue           | 38.00    |
      | status            | delisted |
    And the order "vases" has the lines
      | item | price | quantity | amount |
      | vase | 19.00 | 2        | 38.00  |

  Scenario: An item that nobody ordered is deleted
    Given the item "dust" from "Nowhere" at 1.00 with 1 in stock
    And the product "dust" shows
      | status | listed |
    When the item "dust" is deleted
    Then there is no product "dust"

  Scenario: A half-made item
    Given an item "clock" from "Austria" whose price and quantity are still missing
    Then the product "clock" shows
      | name              | clock  |
      | price             | null   |
      | quantity_in_stock | null   |
      | status            | listed |
    When the item "clock" gets the quantity 7
    Then the product "clock" shows
      | price             | null |
      | quantity_in_stock | 7    |
    When the item "clock" gets the price 99.00
    Then the product "clock" shows
      | price             | 99.00 |
      | quantity_in_stock | 7     |

  Scenario: The price written last counts, whatever happens to the one before
    Given the item "bowl" from "Kenya" at 8.00 with 12 in stock
    When the item "bowl" gets the price 9.50
    Then the product "bowl" shows
      | price | 9.50 |
    When the first price of the item "bowl" is changed to 5.00
    Then the product "bowl" shows
      | price | 9.50 |
    When the last price of the item "bowl" is deleted
    Then the product "bowl" shows
      | price | 5.00 |

  Scenario: An item is restocked
    Given the item "spoon" from "Chile" at 2.00 with 1 in stock
    When the item "spoon" is restocked to 250
    Then the product "spoon" shows
      | quantity_in_stock | 250 |

  Scenario: Names as people write them
    Given the item "tea glass" from "Côte d'Ivoire" at 4.00 with 2 in stock
    When the item "tea glass" is renamed to
      """
      Café «l'été» 🍵 שלום \ "quoted" | tab
      """
    Then the name of the product "tea glass" is
      """
      Café «l'été» 🍵 שלום \ "quoted" | tab
      """
    And the product "tea glass" shows
      | country_of_origin | Côte d'Ivoire |

  Scenario: A long description survives a change of something else
    Given the item "book" from "India" at 15.00 with 9 in stock
    And the item "book" has a description of 100 KiB
    When the item "book" is renamed to "second edition"
    Then the product "book" shows
      | name | second edition |
    And the product "book" still has its description of 100 KiB
